//! The filter before `ADDRESSES_*`: a bit that is set says that the program knows no address of
//! this hash, so that a packet that is nobody's costs no look-up. A bit too few costs a look-up, so
//! a filter that nobody has filled yet loses nothing.

use crate::flow::Addr;

/// Words of 64 bits in `ADDRESS_FILTER`; the default. A power of two, at most 2^20.
pub const FILTER_WORDS: u32 = 1 << 10;
/// The [`shift`] of the default.
pub const FILTER_SHIFT: u32 = shift(FILTER_WORDS);

/// The `shift` of [`place`] for a filter of `words` words.
pub const fn shift(words: u32) -> u32 {
    u32::BITS - words.ilog2()
}

/// The number of words for `addresses` addresses of each family: 64 bits for 32 of each, so that
/// about 63 % of the addresses that are nobody's cost a look-up when the tables of both families
/// are full, and 1.5 % when they are 1/64 full.
pub const fn words(addresses: u32) -> u32 {
    let words = (addresses / 32).next_power_of_two();
    if words < FILTER_WORDS { FILTER_WORDS } else { words }
}

/// The word and the bit of an address, in a filter of this [`shift`].
#[inline(always)]
pub fn place<A: Addr>(address: &A, shift: u32) -> (u32, u64) {
    let hash = address.scatter();
    (hash >> shift, 1 << (hash >> (shift - 6) & 63))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_has_one_bit_in_the_filter(v4: u32, v6: [u32; 4], bits in 10..=20_u32) {
            let words = 1 << bits;
            for (word, bit) in [place(&v4, shift(words)), place(&v6, shift(words))] {
                prop_assert!(word < words && bit.is_power_of_two());
            }
        }
    }

    #[test]
    fn neighbours_do_not_share_bits() {
        let mut bits = std::collections::BTreeSet::new();
        for last in 0..=255 {
            bits.insert(place(&u32::from_ne_bytes([192, 0, 2, last]), FILTER_SHIFT));
            let v6 = [u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]), 0, 0, u32::from_ne_bytes([0, 0, 0, last])];
            bits.insert(place(&v6, FILTER_SHIFT));
        }
        assert!(bits.len() > 500, "{} bits for 512 addresses", bits.len());
    }

    /// The share of strangers that a filter of `words` words lets through if it holds `addresses`
    /// addresses of each family.
    fn let_through(addresses: u32, words: u32) -> f64 {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 32) as u32
        };
        let mut filter = vec![0_u64; words as usize];
        for _ in 0..addresses {
            let v4 = place(&random(), shift(words));
            let v6 = place(&[random(), random(), 0, random()], shift(words));
            for (word, bit) in [v4, v6] {
                filter[word as usize] |= bit;
            }
        }
        let strangers = 100_000_u32;
        let through = (0..strangers).filter(|_| {
            let (word, bit) = place(&random(), shift(words));
            filter[word as usize] & bit != 0
        });
        through.count() as f64 / f64::from(strangers)
    }

    #[test]
    fn full_filter_still_stops_a_third_of_the_strangers_and_one_with_more_room_no_fewer() {
        assert_eq!([1024, 1 << 15, 1 << 16, 1 << 18].map(words), [1024, 1024, 2048, 8192]);
        for addresses in [1 << 15, 1 << 16, 1 << 18] {
            // 1 - 1/e: as many addresses as bits.
            let share = let_through(addresses, words(addresses));
            assert!((share - 0.632).abs() < 0.02, "{addresses} addresses of each family let {share} through");
        }
        assert!(let_through(1 << 18, FILTER_WORDS) > 0.99, "a filter that does not grow is of no use");
    }
}
