//! Digests for comparing nodes: they cover addresses, not map indexes, which differ between nodes.

use std::net::SocketAddr;

use lb_common::flow::Family;
use sha2::{Digest, Sha256};

use super::declared::{Declared, update};

/// Two hashes in hex, `DECLARED-OWNERS`: a hash of the declaration (seed, size, backends, weights),
/// and a hash of the owner of each slot.
///
/// Nodes whose first halves differ have different declarations. If only the second halves differ,
/// different backends are eligible on the nodes.
pub fn digest(declared: &Declared, family: Family, owners: impl IntoIterator<Item = Option<SocketAddr>>) -> String {
    let mut told = Sha256::new();
    told.update(b"weir declared 1");
    told.update(declared.seed);
    told.update([family.number()]);
    told.update(declared.ring_size.to_be_bytes());
    for (address, weight) in &declared.backends {
        update(&mut told, address);
        told.update(weight.to_be_bytes());
    }
    let mut ring = Sha256::new();
    ring.update(b"weir ring 1");
    ring.update([family.number()]);
    // One buffer for the whole ring: the hash is much faster over one long run than over many short
    // ones.
    let mut bytes = Vec::new();
    for owner in owners {
        match owner {
            Some(SocketAddr::V4(v4)) => {
                bytes.push(4);
                bytes.extend(v4.ip().octets());
                bytes.extend(v4.port().to_be_bytes());
            }
            Some(SocketAddr::V6(v6)) => {
                bytes.push(6);
                bytes.extend(v6.ip().octets());
                bytes.extend(v6.port().to_be_bytes());
            }
            None => bytes.push(0),
        }
    }
    ring.update(&bytes);
    format!("{}-{}", hex(&told.finalize()), hex(&ring.finalize()))
}

/// The first 32 bits.
fn hex(hash: &[u8]) -> String {
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
