//! The filter before `ADDRESSES_*`: a bit that is set says that the program knows no address of
//! this hash, so that a packet that is nobody's costs no look-up. A bit too few costs a look-up, so
//! a filter that nobody has filled yet loses nothing.

use crate::flow::Addr;

/// Words of 64 bits in `ADDRESS_FILTER`.
pub const FILTER_WORDS: u32 = 1 << 10;

/// The word and the bit of an address.
#[inline(always)]
pub fn place<A: Addr>(address: &A) -> (u32, u64) {
    let hash = address.scatter();
    (hash >> 22, 1 << (hash >> 16 & 63))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_has_one_bit_in_the_filter(v4: u32, v6: [u32; 4]) {
            for (word, bit) in [place(&v4), place(&v6)] {
                prop_assert!(word < FILTER_WORDS && bit.is_power_of_two());
            }
        }
    }

    #[test]
    fn neighbours_do_not_share_bits() {
        let mut bits = std::collections::BTreeSet::new();
        for last in 0..=255 {
            bits.insert(place(&u32::from_ne_bytes([192, 0, 2, last])));
            bits.insert(place(&[u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]), 0, 0, u32::from_ne_bytes([0, 0, 0, last])]));
        }
        assert!(bits.len() > 500, "{} bits for 512 addresses", bits.len());
    }
}
