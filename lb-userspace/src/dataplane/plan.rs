//! A pure function from the wanted and the programmed state to the writes that make them equal.
//!
//! The first step makes the wanted image and keeps every index, range and counter of the programmed
//! image that is still right. The second step orders the differences so that a packet sees either
//! the old or the new state at any instant.

mod backends;
mod ids;
mod part;
mod recover;
mod services;
mod snat;
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{backend::Backend, flow::Family, service, settings};

pub use self::{
    part::plan_part,
    recover::{Recovered, recover},
    services::{Audit, Memo},
};
use self::{
    services::{Inputs, Room},
    snat::Blocks,
};
use super::{
    arena::Numbers,
    image::{Image, Slots, Write},
};
use crate::{
    balance::Ring,
    model::{
        Affinity, Limits, Mode, OnDead,
        limits::{Exceeded, Need},
    },
    state::{AdminState, BackendId, Health, ServiceName},
};

/// Everything that the maps should hold: configuration, overrides, health, and facts about the
/// node.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The plan adds the flags that the backends need.
    pub settings: settings::Settings,
    /// The sizes of the maps.
    pub limits: Limits,
    /// Sorted by name, unique.
    pub services: Vec<Arc<WantedService>>,
    /// Services of which these do not know may still be wanted: whatever the maps hold for services
    /// that are not among these stays as it is.
    pub holds: bool,
    pub node_addresses: BTreeSet<IpAddr>,
    /// Prefixes that may send encapsulated packets to those addresses.
    pub peers: BTreeSet<IpNet>,
    pub ways_out: BTreeMap<u32, u32>,
    /// When anything but health last changed in the wanted state; CLOCK_BOOTTIME.
    pub since_ns: u64,
}

impl Wanted {
    /// Where in `services` the service of this name is.
    pub fn position(&self, name: &ServiceName) -> Option<usize> {
        self.services.binary_search_by(|service| service.name.cmp(name)).ok()
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct WantedService {
    pub name: ServiceName,
    pub vips: Vec<IpAddr>,
    pub port: u16,
    pub mode: Mode,
    /// `nat` without SNAT.
    pub keeps_source: bool,
    pub affinity: Affinity,
    pub drain_timeout: Duration,
    pub settle_time: Duration,
    pub on_dead: OnDead,
    /// One for each family of its VIPs.
    pub rings: BTreeMap<Family, Arc<Ring>>,
    /// Sorted by address, unique.
    pub backends: Vec<WantedBackend>,
    /// Backends that it had and that are no more: they have no flows to keep.
    pub gone: BTreeSet<SocketAddr>,
}

impl WantedService {
    /// The VIPs, each with the port.
    pub fn served(&self) -> impl Iterator<Item = SocketAddr> + use<'_> {
        self.vips.iter().map(|vip| SocketAddr::new(*vip, self.port))
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct WantedBackend {
    pub address: SocketAddr,
    pub admin: AdminState,
    pub health: Health,
    /// Nanoseconds since 1970; 0 is never.
    pub health_since_unix_ns: u64,
    pub is_eligible: bool,
    /// The backend is delivered on this node: its address is one of this node's, or of a pod here.
    pub is_local: bool,
    /// The SNAT addresses used towards the backend; empty where the client's address is kept.
    pub snat: Vec<IpAddr>,
    /// Only for `dsr-ipip`.
    pub tunnel: Option<Tunnel>,
}

/// The outer addresses of encapsulated packets, both of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    pub to: IpAddr,
    /// `None`: there is no route to `to` yet.
    pub source: Option<IpAddr>,
}

/// What flows still use, as of the last complete pass over the flow tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowUse {
    /// When the pass began, in CLOCK_BOOTTIME; 0 if there was no pass yet.
    pub scanned_at_ns: u64,
    /// Indexes of backends that some entry names.
    pub backends: BTreeSet<u32>,
    /// Those of them with a connection that is not over.
    pub busy: BTreeSet<u32>,
    /// Indexes of the counters of VIPs that some entry names.
    pub vips: BTreeSet<u32>,
    /// Those of them with a connection that is not over.
    pub busy_vips: BTreeSet<u32>,
    /// SNAT addresses.
    pub snat: BTreeSet<IpAddr>,
}

impl FlowUse {
    /// By this time, a SYN handled with the state before a change has either created its flow or
    /// never will.
    const IN_FLIGHT_NS: u64 = 1_000_000_000;

    /// Whether the pass would have seen every flow that began before `since_ns`.
    fn is_after(&self, since_ns: u64) -> bool {
        self.scanned_at_ns > since_ns.saturating_add(Self::IN_FLIGHT_NS)
    }
}

/// The writes, and what was decided while planning them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub writes: Vec<Write>,
    /// The maps after the writes.
    pub target: Image,
    /// Ids of the wanted services, by name.
    pub services: BTreeMap<ServiceName, u32>,
    /// Indexes of the wanted backends.
    pub backends: BTreeMap<BackendId, u32>,
    /// Indexes of backends whose flows are over, but whose entries still exist.
    pub over: BTreeSet<u32>,
    /// The ids of services of which everything stays as it is: see [`Wanted::holds`].
    pub held: BTreeSet<u32>,
    /// Backends that are no longer declared, and drain.
    pub leaving: Vec<Leaving>,
    /// When the next drain of each service ends, whether or not its flows have; CLOCK_BOOTTIME, by
    /// the id of the service.
    pub ends: BTreeMap<u32, u64>,
}

/// A backend that is no longer declared but has flows, or may have some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaving {
    pub index: u32,
    /// The id of its service, which may be gone too.
    pub service: u32,
    pub address: SocketAddr,
    pub until_ns: u64,
}

/// Why there is no plan; in that case nothing is written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    #[error("no room for the ring of service {service} ({len} slots): {full}; that takes a restart of the agent")]
    Rings { service: ServiceName, len: u32, full: Exceeded },
    #[error(
        "no index is free for backend {backend}: {full}; that takes a restart of the agent, or wait for drains to end"
    )]
    Backends { backend: BackendId, full: Exceeded },
    #[error("no counter is free for {vip} of service {service}: {full}; that takes a restart of the agent")]
    Stats { service: ServiceName, vip: SocketAddr, full: Exceeded },
    #[error("no room for all addresses: {0}; that takes a restart of the agent")]
    Addresses(Exceeded),
    #[error(
        "no room for the SNAT addresses of backend {backend}: SNAT_ADDRESSES is full; use fewer addresses in snat.addresses"
    )]
    Snat { backend: BackendId },
}

impl PlanError {
    /// The service for which there is no room; `None` if it is not one service's alone.
    pub const fn service(&self) -> Option<&ServiceName> {
        match self {
            PlanError::Rings { service, .. } | PlanError::Stats { service, .. } => Some(service),
            PlanError::Backends { backend, .. } | PlanError::Snat { backend } => Some(&backend.service),
            PlanError::Addresses(_) => None,
        }
    }
}

/// The writes that make the maps hold what is wanted, from any state of the maps, even one edited
/// by hand. No writes if everything is right already.
pub fn plan(
    wanted: &Wanted,
    programmed: &Image,
    slots: &dyn Slots,
    in_use: &FlowUse,
    now_ns: u64,
) -> Result<Plan, PlanError> {
    plan_again(wanted, programmed, slots, in_use, now_ns, &mut Memo::default())
}

/// Like [`plan`], but uses what `memo` remembers of the previous plan to skip unchanged rings. The
/// writes of that plan must have been applied.
pub fn plan_again(
    wanted: &Wanted,
    programmed: &Image,
    slots: &dyn Slots,
    in_use: &FlowUse,
    now_ns: u64,
    memo: &mut Memo,
) -> Result<Plan, PlanError> {
    let services = &wanted.services;
    let mut plan = Plan { services: ids::assign(services, programmed, wanted.holds), ..Plan::default() };
    if wanted.holds {
        plan.hold(programmed);
    }
    let numbers = || {
        let named = services::named(memo.unknown(programmed), slots, |slot| [slot.current(), slot.previous()]);
        Numbers::backends(programmed, &named, &in_use.backends, wanted.limits.backends)
    };
    let blocks = Blocks::of(programmed);
    let (limits, inputs) = (&wanted.limits, (services.as_slice(), programmed));
    let placed = backends::plan_backends(inputs, limits, numbers, blocks, in_use, now_ns, &mut plan)?;
    let leaving = services::leaving(services, programmed, in_use, now_ns, &mut plan);
    let inputs = Inputs { services, programmed, slots, placed: &placed, limits, now_ns };
    let mut room = Room::of(services, programmed, in_use, &plan, limits);
    memo.retain(&plan);
    let mut slots = services::plan_services(&inputs, &mut room, memo, &mut plan)?;
    slots.extend(services::plan_leaving(leaving, &inputs, room, &mut plan)?);
    plan.target.addresses = addresses(wanted, programmed, in_use, &plan.target);
    check_addresses(&wanted.limits, &plan.target)?;
    plan.target.settings = Some(settings(wanted, &plan.target));
    plan.target.ways_out = wanted.ways_out.clone();
    plan.target.peers = wanted.peers.clone();
    plan.writes = writes::writes(programmed, &plan.target, slots);
    Ok(plan)
}

impl Plan {
    /// The wanted services by id.
    fn by_id<'a>(&self, services: &'a [Arc<WantedService>]) -> BTreeMap<u32, &'a WantedService> {
        let id = |service: &WantedService| self.services.get(&service.name).copied();
        services.iter().filter_map(|service| Some((id(service)?, &**service))).collect()
    }

    /// Holds all that `programmed` has for services that are not wanted.
    fn hold(&mut self, programmed: &Image) {
        let wanted: BTreeSet<u32> = self.services.values().copied().collect();
        let services = programmed.services.values().map(|service| service.id);
        let backends =
            programmed.backends.values().filter(|backend| backend.family != 0).map(|backend| backend.service);
        self.held = services.chain(backends).filter(|id| !wanted.contains(id)).collect();
        let held = programmed.services.iter().filter(|(_, service)| self.held.contains(&service.id));
        self.target.services = held.map(|(vip, service)| (*vip, *service)).collect();
    }

    /// Notes that something of a service ends at `at_ns`.
    fn ends(&mut self, service: u32, at_ns: u64) {
        let next = self.ends.entry(service).or_insert(at_ns);
        *next = at_ns.min(*next);
    }
}

fn settings(wanted: &Wanted, target: &Image) -> settings::Settings {
    let mut flags = wanted.settings.flags | settings_flags(target);
    if !wanted.peers.is_empty() {
        flags |= settings::Settings::FLAG_TUNNEL;
    }
    settings::Settings { flags, layout: settings::LAYOUT, ..wanted.settings }
}

/// The flags of the settings that these backends need.
fn settings_flags(target: &Image) -> u32 {
    let keeps_source = target.backends.values().any(Backend::keeps_source);
    if keeps_source { settings::Settings::FLAG_KEEP_SOURCE } else { 0 }
}

/// The SNAT addresses, and the addresses of backends that keep the client's address, with their
/// bits.
fn address_bits(target: &Image) -> BTreeMap<IpAddr, u32> {
    let mut addresses: BTreeMap<IpAddr, u32> = BTreeMap::new();
    let mut set = |address: IpAddr, bits: u32| *addresses.entry(address).or_default() |= bits;
    for address in target.snat_addresses.iter().flatten() {
        set(*address, service::address::SNAT);
    }
    for backend in target.backends.values().filter(|backend| backend.keeps_source()) {
        if let Some(address) = address(backend) {
            set(address.ip(), service::address::KEEP_SOURCE);
        }
    }
    addresses
}

fn addresses(wanted: &Wanted, programmed: &Image, in_use: &FlowUse, target: &Image) -> BTreeMap<IpAddr, u32> {
    let mut addresses = address_bits(target);
    let mut set = |address: IpAddr, bits: u32| *addresses.entry(address).or_default() |= bits;
    for vip in target.services.keys() {
        set(vip.ip(), service::address::VIP);
    }
    // Answers of backends may still arrive at addresses that SNAT no longer uses for new flows.
    for (address, bits) in &programmed.addresses {
        let may_be_used = !in_use.is_after(wanted.since_ns) || in_use.snat.contains(address);
        if bits & service::address::SNAT != 0 && may_be_used {
            set(*address, service::address::SNAT);
        }
    }
    if !wanted.peers.is_empty() {
        for address in &wanted.node_addresses {
            *addresses.entry(*address).or_default() |= service::address::TUNNEL;
        }
    }
    for (address, bits) in &mut addresses {
        if wanted.node_addresses.contains(address) {
            *bits |= service::address::NODE;
        }
    }
    addresses
}

fn check_addresses(limits: &Limits, target: &Image) -> Result<(), PlanError> {
    let mut need = Need::default();
    need.add_addresses(target.addresses.keys().copied());
    need.exceeds(limits).first().map_or(Ok(()), |exceeded| Err(PlanError::Addresses(*exceeded)))
}

/// The address and port of an entry of `BACKENDS`; `None` if the entry is free or malformed.
pub fn address(backend: &Backend) -> Option<SocketAddr> {
    let family = Family::from_number(backend.family)?;
    let ip = lb_common::flow::ip_addr(family, backend.address);
    Some(SocketAddr::new(ip, u16::from_be(backend.port_be)))
}

const fn mode_number(mode: Mode) -> u8 {
    match mode {
        Mode::Nat => service::MODE_NAT,
        Mode::DsrL2 => service::MODE_DSR_L2,
        Mode::DsrIpip => service::MODE_DSR_IPIP,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
