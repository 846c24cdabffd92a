//! The result of planning: a plan, or the error that says what has no room in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use super::wanted::WantedService;
use crate::{
    dataplane::image::{Image, Write},
    model::limits::Exceeded,
    state::{BackendId, ServiceName},
};

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
    /// The ids of services that are not wanted, but whose map entries all stay as they are: see
    /// [`Wanted::holds`].
    pub held: BTreeSet<u32>,
    /// Backends that are no longer declared, and drain.
    pub leaving: Vec<Leaving>,
    /// The next deadline of each service, by its id; CLOCK_BOOTTIME. A deadline ends a drain, or
    /// the time after a drain in which the remaining flows are reset or dropped.
    pub ends: BTreeMap<u32, u64>,
    /// Services for which the maps have no room. Planning goes on without them, to find all such
    /// services; a plan with misfits is not carried out.
    pub misfits: BTreeMap<ServiceName, Misfit>,
}

impl Plan {
    /// The wanted services by id.
    pub fn by_id<'a>(&self, services: &'a [Arc<WantedService>]) -> BTreeMap<u32, &'a WantedService> {
        let id = |service: &WantedService| self.services.get(&service.name).copied();
        services.iter().filter_map(|service| Some((id(service)?, &**service))).collect()
    }

    /// Marks every programmed service that is not wanted as held, and keeps the entries of its
    /// VIPs.
    pub fn hold(&mut self, programmed: &Image) {
        let wanted: BTreeSet<u32> = self.services.values().copied().collect();
        let services = programmed.services.values().map(|service| service.id);
        let backends =
            programmed.backends.values().filter(|backend| backend.family != 0).map(|backend| backend.service);
        self.held = services.chain(backends).filter(|id| !wanted.contains(id)).collect();
        let held = programmed.services.iter().filter(|(_, service)| self.held.contains(&service.id));
        self.target.services = held.map(|(vip, service)| (*vip, *service)).collect();
    }

    /// Notes that there is no room for a service.
    pub fn leave_out(&mut self, service: &ServiceName, misfit: Misfit) {
        self.misfits.entry(service.clone()).or_insert(misfit);
    }

    /// The error for the services that were left out, if there are any. Services that lack anything
    /// but indexes of backends come first: they had indexes, which others may have lacked.
    pub fn complete(&mut self) -> Result<(), PlanError> {
        let mut misfits = std::mem::take(&mut self.misfits);
        let lacks_indexes = |misfit: &Misfit| matches!(misfit, Misfit::Backends { .. });
        if !misfits.values().all(lacks_indexes) {
            misfits.retain(|_, misfit| !lacks_indexes(misfit));
        }
        if misfits.is_empty() { Ok(()) } else { Err(PlanError { misfits, common: None }) }
    }

    /// Notes that a deadline of a service is at `at_ns`; the earliest one is kept.
    pub fn ends(&mut self, service: u32, at_ns: u64) {
        let next = self.ends.entry(service).or_insert(at_ns);
        *next = at_ns.min(*next);
    }
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanError {
    /// The services without room, and why. One may fit once others are left out.
    pub misfits: BTreeMap<ServiceName, Misfit>,
    /// The misfit that concerns all services together.
    pub common: Option<Misfit>,
}

/// What there is no room for in the maps.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misfit {
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
        "no room for the SNAT addresses of backend {backend}: SNAT_ADDRESSES is full; use fewer addresses in \
        snat.addresses"
    )]
    Snat { backend: BackendId },
}

/// What there is no room for is missing for all services together.
impl From<Misfit> for PlanError {
    fn from(common: Misfit) -> Self {
        Self { misfits: BTreeMap::new(), common: Some(common) }
    }
}

impl std::error::Error for PlanError {}

impl fmt::Display for PlanError {
    /// The first misfit, and the number of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.misfits.values().chain(&self.common);
        if let Some(first) = all.next() {
            write!(f, "{first}")?;
        }
        match all.count() {
            0 => Ok(()),
            1 => write!(f, " (and 1 more service without room)"),
            more => write!(f, " (and {more} more services without room)"),
        }
    }
}
