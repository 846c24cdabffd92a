//! The fingerprints of recent SYNs, one 64-bit word each in the fixed-size array `SYNS`: a SYN that
//! is sent again follows its first, and no flood can make the array grow.
//!
//! Bits 0 to 31 hold the fingerprint, 32 to 55 the owner, 56 to 63 how often it was repeated.

use crate::limits::SYNS_LEN;

/// One word of `SYNS`; zero is empty.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn(pub u64);

const OWNER_SHIFT: u32 = 32;
const REPEATS_SHIFT: u32 = 56;

impl Syn {
    /// The first SYN of a fingerprint.
    #[inline(always)]
    pub const fn new(fingerprint: u32, owner: u32) -> Self {
        Self(fingerprint as u64 | ((owner as u64 & 0xff_ffff) << OWNER_SHIFT))
    }

    /// Where the SYN of a flow with this hash is kept.
    #[inline(always)]
    pub const fn place(hash: u64) -> u32 {
        hash as u32 & (SYNS_LEN - 1)
    }

    /// What tells a SYN of a flow with this hash and this sequence number from others of its place.
    /// The place is taken from the low bits of the hash, the slot from the high ones.
    #[inline(always)]
    pub const fn fingerprint(hash: u64, sequence: u32) -> u32 {
        (hash >> 24) as u32 ^ sequence
    }

    #[inline(always)]
    pub const fn is(self, fingerprint: u32) -> bool {
        self.0 as u32 == fingerprint
    }

    /// The backend to which it went; 0: none.
    #[inline(always)]
    pub const fn owner(self) -> u32 {
        (self.0 >> OWNER_SHIFT) as u32 & 0xff_ffff
    }

    /// How often it was sent again, up to 255.
    #[inline(always)]
    pub const fn repeats(self) -> u8 {
        (self.0 >> REPEATS_SHIFT) as u8
    }

    /// The same, sent once more.
    #[inline(always)]
    pub const fn again(self) -> Self {
        if self.repeats() == u8::MAX { self } else { Self(self.0 + (1 << REPEATS_SHIFT)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_do_not_touch_each_other(fingerprint: u32, owner in 0..1_u32 << 24, repeats in 0..600_u32) {
            let mut syn = Syn::new(fingerprint, owner);
            for _ in 0..repeats {
                syn = syn.again();
            }
            prop_assert!(syn.is(fingerprint));
            prop_assert_eq!((syn.owner(), u32::from(syn.repeats())), (owner, repeats.min(255)));
        }

        #[test]
        fn every_place_is_in_the_array(hash: u64) {
            prop_assert!(Syn::place(hash) < SYNS_LEN);
        }
    }
}
