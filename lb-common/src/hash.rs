//! The keyed hash that maps a flow to a slot.
//!
//! NH, the universal hash of UMAC (RFC 4418, section 5.2.2), over 32-bit words: each pair of words,
//! added to key words, is multiplied to 64 bits and summed. Two flows collide with a probability of
//! 2^-32 over the choice of key, whoever chose the flows, so a client that does not know the seed
//! cannot choose its backend. A finaliser spreads the sum over all bits. It costs two
//! multiplications for IPv4 and five for IPv6, where a SipHash takes some 160 instructions: BPF has
//! no rotate.

/// The key, derived from the seed that all nodes of a set share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKey {
    words: [u32; 10],
    finish: [u64; 2],
}

const _: () = assert!(size_of::<HashKey>() == 56);

/// The seed of a set of nodes, in bytes.
pub const SEED_BYTES: usize = 16;

impl HashKey {
    /// Expands a seed by SplitMix64 (Steele, Lea, Flood 2014) over each half of it.
    pub fn from_seed(seed: [u8; SEED_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = seed;
        let mut low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut high = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        let mut next = || split_mix(&mut low).wrapping_add(split_mix(&mut high).rotate_left(32));
        let mut words = [0; 10];
        for word in &mut words {
            *word = (next() >> 32) as u32;
        }
        Self { words, finish: [next() | 1, next()] }
    }

    #[inline(always)]
    pub fn hash4(&self, data: [u32; 4]) -> u64 {
        let [k0, k1, k2, k3, ..] = self.words;
        let [a, b, c, d] = data;
        self.finish(pair(a, b, k0, k1).wrapping_add(pair(c, d, k2, k3)))
    }

    #[inline(always)]
    pub fn hash10(&self, data: [u32; 10]) -> u64 {
        let [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9] = self.words;
        let [a, b, c, d, e, f, g, h, i, j] = data;
        self.finish(
            pair(a, b, k0, k1)
                .wrapping_add(pair(c, d, k2, k3))
                .wrapping_add(pair(e, f, k4, k5))
                .wrapping_add(pair(g, h, k6, k7))
                .wrapping_add(pair(i, j, k8, k9)),
        )
    }

    #[inline(always)]
    fn finish(&self, sum: u64) -> u64 {
        let [multiplier, addend] = self.finish;
        mix(sum.wrapping_mul(multiplier).wrapping_add(addend))
    }
}

/// The slot of `hash` in a ring of `len` slots, by its upper half; without a division.
#[inline(always)]
pub fn slot_of(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * len as u64) >> 32) as u32
}

#[inline(always)]
fn pair(a: u32, b: u32, key_a: u32, key_b: u32) -> u64 {
    a.wrapping_add(key_a) as u64 * b.wrapping_add(key_b) as u64
}

/// The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit.
#[inline(always)]
pub fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Addr, Flow, V4Addr};

    fn flow(client: u32, port: u16) -> Flow<V4Addr> {
        Flow {
            src: client.to_be(),
            dst: 0xc000_020a_u32.to_be(),
            src_port_be: port.to_be(),
            dst_port_be: 80_u16.to_be(),
        }
    }

    #[test]
    fn split_mix_gives_the_published_numbers() {
        // The first outputs for seed 1234567, from the reference implementation
        // (prng.di.unimi.it/splitmix64.c).
        let mut state = 1_234_567;
        assert_eq!(split_mix(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(split_mix(&mut state), 3_203_168_211_198_807_973);
        assert_eq!(split_mix(&mut state), 9_817_491_932_198_370_423);
    }

    #[test]
    fn slots_stay_in_the_ring_and_fill_evenly() {
        let key = HashKey::from_seed(*b"0123456789abcdef");
        let ring = 1021_u32;
        let mut load = vec![0_u32; ring as usize];
        for client in 0..64_u32 {
            for port in 0..1600_u16 {
                let hash = V4Addr::hash_flow(&key, &flow(0x0a00_0000 + client, 1024 + port));
                load[slot_of(hash, ring) as usize] += 1;
            }
        }
        // Chi-square with 1020 degrees of freedom: mean 1020, standard deviation 45.
        let mean = 64.0 * 1600.0 / ring as f64;
        let chi: f64 = load.iter().map(|n| (*n as f64 - mean).powi(2) / mean).sum();
        assert!((800.0..1250.0).contains(&chi), "chi-square {chi}");
    }

    #[test]
    fn another_seed_gives_another_order() {
        let one = HashKey::from_seed([1; 16]);
        let two = HashKey::from_seed([2; 16]);
        let same = (0..4096_u16)
            .filter(|port| {
                let flow = flow(0x0a00_0001, *port);
                slot_of(V4Addr::hash_flow(&one, &flow), 64) == slot_of(V4Addr::hash_flow(&two, &flow), 64)
            })
            .count();
        assert!((32..=110).contains(&same), "{same} of 4096 flows in the same of 64 slots");
    }
}
