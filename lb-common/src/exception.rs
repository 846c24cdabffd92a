//! Exceptions: flows of DSR services with an entry, because the ring alone does not say where they
//! go.
//!
//! `HALF_OPEN_*` (LRU) holds what a SYN left in a slot that was not settled, until a packet
//! confirms it; `ESTABLISHED_*` (a hash that refuses when full) what is confirmed; `SEEN_*` (LRU)
//! flows that were there before their slot changed, as they were seen going to `previous`.

/// The value of all three tables, in both families; the key is the flow as the client sends it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Where it goes: an index into `BACKENDS`.
    pub backend: u32,
    /// [`crate::backend::Backend::generation`] of that backend: an entry that outlives its backend
    /// is a miss, never another backend.
    pub generation: u32,
    /// Its slot: an index into `RINGS`.
    pub slot: u32,
    /// The sequence number of its SYN, in host order; 0 where that was not seen.
    pub sequence: u32,
    /// `EXCEPTION_*`.
    pub flags: u32,
    pub reserved: u32,
    /// When a packet of it last passed, to the second; CLOCK_BOOTTIME.
    pub last_seen_ns: u64,
}

const _: () = assert!(size_of::<Exception>() == 32);

/// It has said FIN or RST, and nothing since: its idle time is short, and a new SYN takes its
/// tuple.
pub const EXCEPTION_CLOSING: u32 = 1;
/// It opened while its slot was in transition or tracked.
pub const EXCEPTION_OPENED: u32 = 2;
/// It was there before its slot changed, and was kept when the slot settled.
pub const EXCEPTION_KEPT: u32 = 4;

/// How far the sequence number of the packet that confirms a half-open flow may be past its SYN's:
/// the first flight fits in a window that is not scaled yet (RFC 7323, section 2.2).
pub const CONFIRM_WINDOW: u32 = 1 << 16;

impl Exception {
    /// Whether a packet with this sequence number can be the first, or one of the first, behind the
    /// SYN that left this entry.
    #[inline(always)]
    pub const fn is_confirmed_by(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.sequence).wrapping_sub(1) < CONFIRM_WINDOW
    }
}

#[cfg(feature = "user")]
// SAFETY: integers only, without padding: the size is asserted above.
unsafe impl aya::Pod for Exception {}
