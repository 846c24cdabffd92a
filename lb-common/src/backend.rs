//! What the program knows of a backend; the agent's own notes are beside it, so that a restarted
//! agent finds them.

use crate::flow::AnyAddr;

/// An entry of `BACKENDS`. Index 0 is `reject` and stays zero. What each packet needs lies in the
/// first 64 bytes.
///
/// Flow entries name a backend by index *and* generation: an entry that outlives its backend is a
/// miss, never another backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// `FLAG_*`.
    pub flags: u32,
    /// Counts the uses of this index.
    pub generation: u32,
    /// The service it belongs to.
    pub service: u32,
    pub port_be: u16,
    /// 4 or 6; 0 means that the index is free.
    pub family: u8,
    /// How it is reached: `WAY_*`.
    pub way: u8,
    pub address: AnyAddr,
    /// Where encapsulated packets go: its own address, or another of either family; `way` says
    /// which. Zero without encapsulation.
    pub tunnel: AnyAddr,
    /// The source of encapsulated packets, of the tunnel's family. See
    /// [`crate::settings::Settings::vary_source_v4`].
    pub tunnel_source: AnyAddr,
    /// Its SNAT addresses: first index in `SNAT_ADDRESSES`, and how many.
    pub snat_first: u16,
    pub snat_count: u16,
    /// `ADMIN_*`: the agent's, for its own restart.
    pub admin: u8,
    /// `HEALTH_*`: the agent's, for its own restart.
    pub health: u8,
    pub reserved: [u8; 2],
    /// How long it drains at the most, in milliseconds. The agent's, for a drain that outlives its
    /// service in the file.
    pub drain_timeout_ms: Milliseconds,
    pub reserved_more: u32,
    /// Since when it drains; 0 if it doesn't. The agent's, for its own restart.
    pub draining_since_ns: u64,
    /// When its health last changed, in nanoseconds since 1970; 0 is never. The agent's, for its
    /// own restart.
    pub health_since_unix_ns: u64,
    pub reserved_last: [u64; 4],
}

const _: () = assert!(size_of::<Backend>() == 128);

/// Of a time-out.
pub type Milliseconds = u32;

impl Backend {
    /// Its flows may go on; without it they are treated as [`Backend::FLAG_RESET`] and
    /// [`Backend::FLAG_DROP`] say, or as misses.
    pub const FLAG_SERVING: u32 = 1;
    /// An address of this node: packets go up the stack, the client's address kept.
    pub const FLAG_LOCAL: u32 = 2;
    /// The client's address is kept (DNAT only); its answers come back through this node.
    pub const FLAG_KEEP_SOURCE: u32 = 4;
    /// It does not serve, and its flows are reset (`onDead: reset`).
    pub const FLAG_RESET: u32 = 8;
    /// It does not serve, and packets of its flows are dropped (`onDead: drop`).
    pub const FLAG_DROP: u32 = 16;

    pub const FREE: Backend = Backend {
        flags: 0,
        generation: 0,
        service: 0,
        port_be: 0,
        family: 0,
        way: 0,
        address: [0; 4],
        tunnel: [0; 4],
        tunnel_source: [0; 4],
        snat_first: 0,
        snat_count: 0,
        admin: 0,
        health: 0,
        reserved: [0; 2],
        drain_timeout_ms: 0,
        reserved_more: 0,
        draining_since_ns: 0,
        health_since_unix_ns: 0,
        reserved_last: [0; 4],
    };

    #[inline(always)]
    pub const fn is_serving(&self) -> bool {
        self.flags & Self::FLAG_SERVING != 0
    }

    /// Whether its flows keep the client's address.
    #[inline(always)]
    pub const fn keeps_source(&self) -> bool {
        self.flags & Self::FLAG_KEEP_SOURCE != 0
    }
}

pub const WAY_NAT: u8 = 1;
pub const WAY_DSR_L2: u8 = 2;
/// IP in IP with an outer IPv4 header, whatever the family of the service.
pub const WAY_IPIP_V4: u8 = 3;
/// IP in IP with an outer IPv6 header.
pub const WAY_IPIP_V6: u8 = 4;

pub const ADMIN_ACTIVE: u8 = 1;
pub const ADMIN_DRAINING: u8 = 2;
pub const ADMIN_DISABLED: u8 = 3;
/// Draining because it left the declared set; it is gone when the drain ends.
pub const ADMIN_REMOVED: u8 = 4;
/// Gone, but slots still name it as their `previous`, because its flows are to be reset or dropped.
pub const ADMIN_GONE: u8 = 5;

pub const HEALTH_UNKNOWN: u8 = 0;
pub const HEALTH_UP: u8 = 1;
pub const HEALTH_DOWN: u8 = 2;
/// Down because nothing answers at all.
pub const HEALTH_DEAD: u8 = 3;

#[cfg(feature = "user")]
// SAFETY: integers only, without padding: the size is asserted above.
unsafe impl aya::Pod for Backend {}
