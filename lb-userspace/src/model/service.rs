//! A service, and what belongs to it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::BitOr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::state::{AdminState, ServiceName};

/// The default of `ringSize`.
pub const DEFAULT_RING_SIZE: u32 = 16381;
/// A ring has at least this many slots for each backend, so that shares are right to a few percent.
pub const SLOTS_PER_BACKEND: u32 = 20;
/// The largest ring of a service and family.
pub const MAX_RING_SIZE: u32 = 1 << 20;
/// The largest weight of a backend, both in the file and by the CLI.
pub const MAX_WEIGHT: u32 = 1_000_000;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    /// Sorted, unique. A VIP without a backend of its family rejects connections.
    pub vips: Vec<IpAddr>,
    pub port: u16,
    pub mode: Mode,
    /// `nat` only.
    pub source: SourceAddress,
    pub affinity: Affinity,
    /// A prime.
    pub ring_size: u32,
    pub drain_timeout: Duration,
    /// How long a slot that changed owner sends unknown flows to the previous owner. This has no
    /// effect in `nat`, which has an entry for every flow.
    pub settle_time: Duration,
    pub on_dead: OnDead,
    /// None: no probes; every backend counts as up.
    pub health: Option<HealthCheck>,
    /// Sorted by address, unique.
    pub backends: Vec<Backend>,
    /// Former backends whose flows end at once. Other backends that were removed drain.
    pub gone: BTreeSet<SocketAddr>,
}

impl Service {
    /// The VIPs, each with the port.
    pub fn served(&self) -> impl Iterator<Item = SocketAddr> + use<'_> {
        self.vips.iter().map(|vip| SocketAddr::new(*vip, self.port))
    }

    /// Whether backends see an address of this node instead of the client's.
    pub fn uses_snat(&self) -> bool {
        self.mode == Mode::Nat && self.source == SourceAddress::Translate
    }

    /// Whether backends see the client's address although flows have entries on this node.
    pub fn keeps_source(&self) -> bool {
        self.mode == Mode::Nat && self.source == SourceAddress::Keep
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Mode {
    Nat,
    DsrL2,
    DsrIpip,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Nat => "nat",
            Mode::DsrL2 => "dsr-l2",
            Mode::DsrIpip => "dsr-ipip",
        }
    }

    /// Whether backends answer clients directly, so that only exceptions have an entry on this
    /// node.
    pub const fn is_dsr(self) -> bool {
        match self {
            Mode::Nat => false,
            Mode::DsrL2 | Mode::DsrIpip => true,
        }
    }
}

/// What happens to the flows of a backend that is gone, or dead while at least half of its service
/// is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum OnDead {
    /// The flows go to their slot's owner, which resets connections that it does not know. In
    /// `nat`, a dead backend keeps its flows, because no other backend can answer.
    #[default]
    Next,
    /// Weir resets the flows.
    Reset,
    /// Packets of the flows are dropped. Not in `nat`.
    Drop,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum SourceAddress {
    /// The backend sees an address of this node.
    #[default]
    Translate,
    /// The backend sees the client; its answers must come back through this node.
    Keep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HealthCheck {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// Successes in a row that bring it up again.
    pub rise: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Probe {
    Tcp,
    Http(HttpProbe),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpProbe {
    pub path: String,
    /// The Host header; None: the backend's address.
    pub host: Option<String>,
    /// Inclusive range of status codes that mean up.
    pub expect: (u16, u16),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub address: SocketAddr,
    pub weight: u32,
    /// Where encapsulated packets go, in `dsr-ipip` only; None: to the backend's own address.
    pub tunnel: Option<IpAddr>,
    pub zone: Option<String>,
    pub state: AdminState,
    /// Whether the backend runs on this node although its address is not one of the node's: a pod,
    /// for example.
    pub is_here: bool,
}

/// Which flow tables the services use. Tables that no service uses are made small.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowTablesInUse {
    pub nat: bool,
    pub dsr: bool,
}

impl FlowTablesInUse {
    pub const ALL: Self = Self { nat: true, dsr: true };

    pub fn of<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        let of = |service: &Service| Self { nat: !service.mode.is_dsr(), dsr: service.mode.is_dsr() };
        services.into_iter().map(of).fold(Self::default(), Self::bitor)
    }

    /// Whether these include all of `other`.
    pub fn contains(self, other: Self) -> bool {
        self | other == self
    }
}

impl BitOr for FlowTablesInUse {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { nat: self.nat || other.nat, dsr: self.dsr || other.dsr }
    }
}
