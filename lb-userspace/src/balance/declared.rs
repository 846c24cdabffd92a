//! The declared input of a ring, and the keyed hashes of its backends.

use std::net::{IpAddr, SocketAddr};

use lb_common::hash::SEED_BYTES;
use sha2::{Digest, Sha256};

/// The declaration of one service and family, the same on every node of a set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Declared {
    pub seed: [u8; SEED_BYTES],
    /// A prime.
    pub ring_size: u32,
    /// Address and weight, sorted by address, unique.
    pub backends: Vec<(SocketAddr, u32)>,
}

impl Declared {
    pub fn new(seed: [u8; SEED_BYTES], ring_size: u32, backends: impl IntoIterator<Item = (SocketAddr, u32)>) -> Self {
        let mut backends: Vec<_> = backends.into_iter().collect();
        backends.sort_unstable();
        backends.dedup_by_key(|(address, _)| *address);
        Self { seed, ring_size, backends }
    }
}

/// A backend's keys for all choices made by hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// The start of the backend's permutation of the slots, before the modulus.
    pub offset: u64,
    /// The step width of the backend's permutation, before the modulus.
    pub skip: u64,
    /// The backend's key in the rendezvous hashing of each slot.
    pub rendezvous: u64,
}

impl Keys {
    /// The first three little-endian 64-bit words of SHA-256 over a label, the seed, the family,
    /// the address and the port.
    pub fn new(seed: &[u8; SEED_BYTES], address: &SocketAddr) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"weir backend 1");
        hash.update(seed);
        update(&mut hash, address);
        let [a, b, c, _] = words(hash.finalize().into());
        Self { offset: a, skip: b, rendezvous: c }
    }
}

/// Hashes family, address and port, so that no two addresses give the same bytes.
pub(super) fn update(hash: &mut Sha256, address: &SocketAddr) {
    match address.ip() {
        IpAddr::V4(v4) => {
            hash.update([4]);
            hash.update(v4.octets());
        }
        IpAddr::V6(v6) => {
            hash.update([6]);
            hash.update(v6.octets());
        }
    }
    hash.update(address.port().to_be_bytes());
}

fn words(hash: [u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(hash.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    }
    words
}
