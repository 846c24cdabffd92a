//! What the maps should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{flow::Family, settings::Settings};

use crate::{
    balance::Ring,
    model::{Affinity, Limits, Mode, OnDead},
    state::{AdminState, Health, ServiceName},
};

/// Everything that the maps should hold: configuration, overrides, health, and facts about the
/// node.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The plan adds the flags that the backends need.
    pub settings: Settings,
    /// The sizes of the maps.
    pub limits: Limits,
    /// Sorted by name, unique.
    pub services: Vec<Arc<WantedService>>,
    /// Some source has not listed all its services yet. Until all sources have, the map entries of
    /// services that are not in `services` stay as they are.
    pub holds: bool,
    pub node_addresses: BTreeSet<IpAddr>,
    /// Prefixes that may send encapsulated packets to `node_addresses`.
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
    /// One ring for each address family of the VIPs.
    pub rings: BTreeMap<Family, Arc<Ring>>,
    /// Sorted by address, unique.
    pub backends: Vec<WantedBackend>,
    /// Former backends whose flows end at once; other backends that were removed drain.
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
    pub tunnel: Option<TunnelEnds>,
}

/// The outer addresses of encapsulated packets, both of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelEnds {
    pub to: IpAddr,
    /// `None`: there is no route to `to` yet.
    pub source: Option<IpAddr>,
}
