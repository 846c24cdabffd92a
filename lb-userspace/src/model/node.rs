//! The settings of a node.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{
    hash::SEED_BYTES,
    limits::{MAX_ESTABLISHED, MAX_HALF_OPEN, MAX_SEEN},
};

use super::limits::Limits;

/// The default of `snat.ports`: the ports outside Linux's default range for ephemeral ports.
pub const DEFAULT_SNAT_PORTS: [(u16, u16); 2] = [(1024, 32767), (61000, 65535)];

/// Settings of this node alone. They come from its configuration file, even if the services come
/// from other sources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// Names, or globs that match names.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// `None`: generated once and kept in the state directory.
    pub hash_seed: Option<[u8; SEED_BYTES]>,
    pub snat: Snat,
    pub timeouts: Timeouts,
    pub tunnel: Tunnel,
    pub flow_tables: FlowTables,
    /// Take effect when the agent starts: it moves the contents of the maps to larger maps, or to
    /// smaller ones if all entries in use fit.
    pub limits: Limits,
    pub admin: Admin,
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

/// How this node sends and receives encapsulated packets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tunnel {
    /// Peers from which this node accepts encapsulated packets; empty: none.
    pub peers: Vec<IpNet>,
    /// Prefixes within which the outer source varies by flow, at most one of each family. Without a
    /// prefix, the outer source is the node's address towards the tunnel.
    pub source: Vec<IpNet>,
}

/// Maximum number of exceptions of DSR services in each table of each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowTables {
    pub established: u32,
    pub half_open: u32,
    /// Not more than `established`.
    pub seen: u32,
}

impl Default for FlowTables {
    fn default() -> Self {
        Self { established: MAX_ESTABLISHED, half_open: MAX_HALF_OPEN, seen: MAX_SEEN }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    pub socket: PathBuf,
    /// Address for the agent's metrics and health; `None`: not served.
    pub http: Option<SocketAddr>,
}
