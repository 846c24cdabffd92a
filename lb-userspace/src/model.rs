//! The desired state. It is validated: code that is given a [`Config`] need not check it again.
//! Sources produce it; a file is one of them.

mod config;
pub(crate) mod incompatible;
pub(crate) mod limits;
pub(crate) mod need;
mod node;
pub(crate) mod prime;
pub(crate) mod rules;
pub(crate) mod seed;
mod service;
pub(crate) mod together;

pub use self::{
    config::Config,
    incompatible::{Incompatible, incompatible},
    limits::Limits,
    node::{Admin, DEFAULT_SNAT_PORTS, FlowTables, NodeSettings, Snat, Timeouts, Tunnel, XdpMode},
    service::{
        Affinity, Backend, DEFAULT_RING_SIZE, FlowTablesInUse, HealthCheck, HttpProbe, MAX_RING_SIZE, MAX_WEIGHT, Mode,
        OnDead, Probe, SLOTS_PER_BACKEND, Service, SourceAddress,
    },
};
