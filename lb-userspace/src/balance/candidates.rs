//! Chooses the backend for a slot whose owner is not eligible: weighted rendezvous hashing (Thaler
//! and Ravishankar 1998; weights by −weight / ln hash) over slot and backend, in integer
//! arithmetic, so that every machine gets the same result.

use lb_common::hash::mix;

use super::declared::{Declared, Keys};

/// The eligible backends of a ring.
pub struct Candidates {
    /// Backend, key, weight.
    all: Vec<(u32, u64, u32)>,
    /// All weights are equal: the highest hash wins, without logarithms.
    is_even: bool,
}

impl Candidates {
    pub fn new(declared: &Declared, keys: &[Keys], is_eligible: &[bool]) -> Self {
        let all: Vec<(u32, u64, u32)> = (0..)
            .zip(declared.backends.iter().zip(keys).zip(is_eligible))
            .filter(|(_, (((_, weight), _), is_eligible))| **is_eligible && *weight > 0)
            .map(|(backend, (((_, weight), keys), _))| (backend, keys.rendezvous, *weight))
            .collect();
        let is_even = all.windows(2).all(|pair| matches!(pair, [(_, _, one), (_, _, other)] if one == other));
        Self { all, is_even }
    }

    /// The eligible backend that comes first in `slot`'s own order.
    pub fn next(&self, slot: u32) -> Option<u32> {
        let salt = mix(u64::from(slot) ^ 0x9e37_79b9_7f4a_7c15);
        let hashed = self.all.iter().map(|(backend, key, weight)| (*backend, mix(key ^ salt), *weight));
        let first = if self.is_even {
            hashed.max_by_key(|(_, hash, _)| *hash)
        } else {
            // The lowest cost per weight wins; on a tie, the highest hash, so that equal weights
            // give the same result in both branches.
            hashed
                .map(|(backend, hash, weight)| (cost(hash), backend, hash, weight))
                .min_by(|(a, _, a_hash, a_weight), (b, _, b_hash, b_weight)| {
                    let (a, b) = (u128::from(*a) * u128::from(*b_weight), u128::from(*b) * u128::from(*a_weight));
                    a.cmp(&b).then_with(|| b_hash.cmp(a_hash))
                })
                .map(|(_, backend, hash, weight)| (backend, hash, weight))
        };
        first.map(|(backend, _, _)| backend)
    }
}

const STEPS_LOG: u32 = 10;
const STEPS: usize = 1 << STEPS_LOG;
/// log2(1 + n / STEPS), times 2^32.
const LOGARITHMS: [u64; STEPS + 1] = logarithms();

/// −log2((hash + 1) / 2^64), times 2^32. A greater hash never costs more. Accurate to 2^-22 by
/// interpolation.
fn cost(hash: u64) -> u64 {
    let Some(number) = hash.checked_add(1) else { return 0 };
    let zeros = number.leading_zeros();
    // Shifts out the leading one; the rest is the fraction, times 2^64.
    let fraction = (number << zeros) << 1;
    let step = (fraction >> (64 - STEPS_LOG)) as usize;
    let rest = u128::from(fraction << STEPS_LOG >> 32);
    let (low, high) = match LOGARITHMS.get(step..step + 2) {
        Some([low, high]) => (*low, *high),
        _ => (0, 0),
    };
    let logarithm = low + ((u128::from(high - low) * rest) >> 32) as u64;
    (u64::from(zeros + 1) << 32) - logarithm
}

/// Computes the logarithms by repeated squaring: each square of a number in [1, 2) that reaches 2
/// gives a one bit of its logarithm.
const fn logarithms() -> [u64; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    let mut step = 0;
    while step < STEPS {
        // 1 + step / STEPS, times 2^31.
        let mut number = (1 << 31) + ((step as u64) << (31 - STEPS_LOG));
        let (mut logarithm, mut bit) = (0_u64, 1_u64 << 31);
        while bit > 0 {
            number = (number * number) >> 31;
            if number >= 1 << 32 {
                number >>= 1;
                logarithm |= bit;
            }
            bit >>= 1;
        }
        table[step] = logarithm;
        step += 1;
    }
    table[STEPS] = 1 << 32;
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cost_is_the_logarithm(hash: u64) {
            let exact = 64.0 - (hash as f64 + 1.0).log2();
            let got = cost(hash) as f64 / 2_f64.powi(32);
            prop_assert!((exact - got).abs() < 1e-6, "{} is not {}", got, exact);
        }

        #[test]
        fn cost_never_rises_with_the_hash(hash: u64, more in 0..1_u64 << 56) {
            prop_assert!(cost(hash.saturating_add(more)) <= cost(hash));
        }
    }

    #[test]
    fn cost_of_the_ends_is_that_of_a_logarithm() {
        assert_eq!((cost(u64::MAX), cost(0), cost((1 << 63) - 1)), (0, 64 << 32, 1 << 32));
    }
}
