//! The flow entries of mode `nat`: one for each direction, found by the 5-tuple of the packet as it
//! arrives.
//!
//! `NAT_HALF_OPEN_*` (LRU) holds flows whose handshake is under way, and those that both ends have
//! finished; `NAT_ESTABLISHED_*` (a hash that refuses when full) the others: a flood fills the
//! first and cannot touch the second. The entry of one direction finds that of the other by
//! [`NatEntry::peer`].

use crate::flow::{Addr, Flow, V4Addr, V6Addr};

/// One direction of a flow: 48 bytes for IPv4, 72 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatEntry<A> {
    /// What the packet's 5-tuple becomes.
    pub to: Flow<A>,
    pub backend: u32,
    /// [`crate::backend::Backend::generation`] of that backend.
    pub generation: u32,
    /// Index in `SERVICE_STATS`.
    pub stats: u32,
    /// `NAT_*`; changed by atomic OR and AND only.
    pub flags: u32,
    /// The sequence number that a new SYN must exceed to use this tuple again (the client's last
    /// one, from its FIN), or while half-open: on the client's side the sequence number of its SYN,
    /// on the backend's the acknowledgement that ends the handshake. In host order.
    pub sequence: u32,
    /// The client's TCP timestamp that goes with `sequence`, 0 if it sends none. In host order.
    pub timestamp: u32,
    pub reserved: u32,
    /// When a packet of this direction last passed, to the second.
    pub last_seen_ns: u64,
}

const _: () = assert!(size_of::<NatEntry<V4Addr>>() == 48);
const _: () = assert!(size_of::<NatEntry<V6Addr>>() == 72);

/// From the client to the backend; without it, the way back.
pub const NAT_FORWARD: u32 = 1;
/// The backend has answered the SYN.
pub const NAT_ANSWERED: u32 = 2;
/// The handshake is complete.
pub const NAT_ESTABLISHED: u32 = 4;
/// A FIN went from the client to the backend; set in the entries of both directions.
pub const NAT_FIN_CLIENT: u32 = 8;
/// A FIN went from the backend to the client; set in the entries of both directions.
pub const NAT_FIN_BACKEND: u32 = 16;
/// A RST passed, and no packet since; set in the entries of both directions.
pub const NAT_RESET: u32 = 32;

/// The client was the first to say FIN: its backend keeps no TIME_WAIT; set in the entries of both
/// directions.
pub const NAT_CLIENT_FIRST: u32 = 64;

/// Whether both ends have said FIN.
#[inline(always)]
pub const fn is_finished(flags: u32) -> bool {
    flags & (NAT_FIN_CLIENT | NAT_FIN_BACKEND) == NAT_FIN_CLIENT | NAT_FIN_BACKEND
}

/// Whether a flow with these flags is over but for stragglers.
#[inline(always)]
pub const fn is_closing(flags: u32) -> bool {
    flags & NAT_RESET != 0 || is_finished(flags)
}

impl<A: Addr> NatEntry<A> {
    /// The same entry, read word by word: see [`Addr::read`].
    #[inline(always)]
    pub fn read(&self) -> Self {
        Self { to: self.to.read(), ..*self }
    }

    /// The key of the entry of the other direction.
    #[inline(always)]
    pub fn peer(&self) -> Flow<A> {
        self.to.reversed()
    }
}

/// Idle times after which an entry counts as absent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatTimeouts {
    pub half_open_ns: u64,
    pub established_ns: u64,
    pub closing_ns: u64,
}

const _: () = assert!(size_of::<NatTimeouts>() == 24);

impl NatTimeouts {
    /// The idle time that an entry with `flags` is granted.
    #[inline(always)]
    pub const fn of(&self, flags: u32) -> u64 {
        if flags & NAT_ESTABLISHED == 0 {
            self.half_open_ns
        } else if is_closing(flags) {
            self.closing_ns
        } else {
            self.established_ns
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{NatEntry, V4Addr, V6Addr};

    // SAFETY: integers only, without padding: the sizes are asserted above.
    unsafe impl aya::Pod for NatEntry<V4Addr> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NatEntry<V6Addr> {}
}
