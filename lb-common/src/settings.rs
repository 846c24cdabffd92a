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
    /// Version of the layout of everything in `lb-common`; another one needs a migration.
    pub layout: u32,
}

const _: () = assert!(size_of::<Settings>() == 112);

/// The layout of this build.
pub const LAYOUT: u32 = 1;

impl Settings {
    /// Some backend keeps the client's address: sources of packets are looked up too.
    pub const FLAG_KEEP_SOURCE: u32 = 1;
}

#[cfg(feature = "user")]
// SAFETY: integers only, without padding: the size is asserted above.
unsafe impl aya::Pod for Settings {}
