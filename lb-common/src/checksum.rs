//! Internet checksums: whole (RFC 1071) and incremental (RFC 1624).
//!
//! Sums are taken over words as they lie in memory: the one's complement sum does not mind byte
//! order, so long as the result is stored the way the words were read (RFC 1071, section 2B).

/// Folds a sum of 16- or 32-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What changes in the data that a checksum covers: RFC 1624's `~m + m'`, over as many words as
/// there are.
#[derive(Clone, Copy, Default)]
pub struct Delta(u64);

impl Delta {
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// A 16-bit word, as it lies in memory, is replaced.
    #[inline(always)]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// An address is replaced.
    #[inline(always)]
    pub fn replace_addr<A: crate::flow::Addr>(self, old: A, new: A) -> Self {
        let old = fold(old.sum());
        let new = fold(new.sum());
        self.replace16(old, new)
    }

    /// The checksum after the change, from the one before it, both as they lie in memory.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold((!checksum) as u64 + self.0)
    }
}

/// The sum of `bytes`, an odd last one padded with zero; not complemented.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0_u64;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        if let [first, second] = *word {
            sum += u16::from_ne_bytes([first, second]) as u64;
        }
    }
    if let [last] = *words.remainder() {
        sum += u16::from_ne_bytes([last, 0]) as u64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071() {
        // RFC 1071, section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn updates_the_example_of_rfc_1624() {
        // RFC 1624, section 4: checksum dd2f, a word 5555 becomes 3285, the new checksum is 0000.
        let updated = Delta::new().replace16(0x5555_u16.to_be(), 0x3285_u16.to_be()).apply(0xdd2f_u16.to_be());
        assert_eq!(u16::from_be(updated), 0x0000);
    }

    proptest! {
        #[test]
        fn update_agrees_with_a_whole_sum(
            mut data in proptest::collection::vec(any::<u16>(), 4..40),
            at in 0..4_usize,
            new: u16,
        ) {
            let whole = |data: &[u16]| !fold(data.iter().map(|word| *word as u64).sum());
            let before = whole(&data);
            let delta = Delta::new().replace16(data[at], new);
            data[at] = new;
            // 0 and ffff are the same number in one's complement, and either is a right checksum.
            prop_assert_eq!(delta.apply(before) % 0xffff, whole(&data) % 0xffff);
        }
    }
}
