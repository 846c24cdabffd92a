//! What the agent tells the program as a whole: the one entry of `SETTINGS`.

use crate::{hash::HashKey, nat::NatTimeouts, ports::PortPool};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub hash_key: HashKey,
    pub nat_timeouts: NatTimeouts,
    pub ports: PortPool,
    /// `FLAG_*`.
    pub flags: u32,
    /// Counts the changes of what the maps hold that names and widths of members don't show: see
    /// `dataplane/migrate/meaning.rs` of the agent.
    pub layout: u32,
    /// The bits of a tunnel's IPv4 source that the flow's hash replaces, in network order; 0: the
    /// source is the backend's entry's as it is.
    pub vary_source_v4: u32,
    /// The same for the last word of an IPv6 source.
    pub vary_source_v6: u32,
}

const _: () = assert!(size_of::<Settings>() == 120);

/// The layout of this build.
pub const LAYOUT: u32 = 2;

impl Settings {
    /// Some backend keeps the client's address: sources of packets are looked up too.
    pub const FLAG_KEEP_SOURCE: u32 = 1;
    /// Somebody wants decisions told: `TRACE_FILTER` says which.
    pub const FLAG_TRACE: u32 = 2;
    /// Peers may send this node encapsulated packets: `PEERS_*` says who.
    pub const FLAG_TUNNEL: u32 = 4;
    /// Another build takes over, and for a moment some hooks run its program with its maps, others
    /// the one before with those before: a packet in the middle of a connection that is unknown may
    /// be known to the other, so it is dropped, and TCP sends it again.
    pub const FLAG_HANDOVER: u32 = 8;
}

#[cfg(feature = "user")]
// SAFETY: integers only, without padding: the size is asserted above.
unsafe impl aya::Pod for Settings {}
