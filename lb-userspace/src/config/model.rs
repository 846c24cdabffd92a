//! A configuration that has been checked: whatever holds a [`Config`] need not doubt it.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::hash::SEED_BYTES;

use crate::state::AdminState;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Names or globs.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// None: made once and kept in the state directory.
    pub hash_seed: Option<[u8; SEED_BYTES]>,
    pub snat: Snat,
    pub timeouts: Timeouts,
    pub admin: Admin,
    /// Sorted by name; names are unique, and so is every VIP and port.
    pub services: Vec<Service>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// Native where the driver has it, generic elsewhere.
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snat {
    /// Empty: the address with which the node reaches the backend.
    pub addresses: Vec<IpAddr>,
    /// Inclusive, disjoint, ascending, at most `lb_common::ports::MAX_RANGES`.
    pub ports: Vec<(u16, u16)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    pub half_open: Duration,
    pub established: Duration,
    pub closing: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    pub socket: PathBuf,
    /// Metrics and health of the agent; None: not served.
    pub http: Option<SocketAddr>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub name: String,
    /// Sorted, unique, each with at least one backend of its family.
    pub vips: Vec<IpAddr>,
    pub port: u16,
    pub mode: Mode,
    /// `nat` only.
    pub source: SourceAddress,
    pub affinity: Affinity,
    /// A prime.
    pub ring_size: u32,
    pub drain_timeout: Duration,
    /// None: no probes; every backend counts as up.
    pub health: Option<HealthCheck>,
    /// Sorted by address, unique.
    pub backends: Vec<Backend>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    Nat,
    DsrL2,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Nat => "nat",
            Mode::DsrL2 => "dsr-l2",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SourceAddress {
    /// The backend sees an address of this node.
    #[default]
    Translate,
    /// The backend sees the client; its answers must come back through this node.
    Keep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// Successes in a row that bring it up again.
    pub rise: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    Tcp,
    Http(HttpProbe),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpProbe {
    pub path: String,
    /// The Host header; None: the backend's address.
    pub host: Option<String>,
    /// Inclusive range of status codes that mean up.
    pub expect: (u16, u16),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    /// At least one backend of each VIP's family has a weight above zero.
    pub weight: u32,
    pub zone: Option<String>,
    pub state: AdminState,
}

/// The value of `ringSize` where the file is silent.
pub const DEFAULT_RING_SIZE: u32 = 16381;
/// A ring has at least this many slots for each backend, so that shares are right to a few percent.
pub const SLOTS_PER_BACKEND: u32 = 20;
/// The largest ring of a service and family.
pub const MAX_RING_SIZE: u32 = 1 << 20;
/// The largest weight of a backend, in the file as by the CLI.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// The value of `snat.ports` where the file is silent: what Linux leaves free by default.
pub const DEFAULT_SNAT_PORTS: [(u16, u16); 2] = [(1024, 32767), (61000, 65535)];
