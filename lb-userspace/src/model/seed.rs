//! The seed of the hash: 128 random bits, 32 hex digits in files.

use std::{
    fs::File,
    io::{self, Read},
};

use lb_common::hash::SEED_BYTES;

pub type Seed = [u8; SEED_BYTES];

/// A seed from the kernel's random numbers.
pub fn random() -> io::Result<Seed> {
    let mut seed = [0; SEED_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

pub fn to_hex(seed: &Seed) -> String {
    seed.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly 32 hex digits.
pub fn from_hex(text: &str) -> Option<Seed> {
    if text.len() != 2 * SEED_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_survives_both_ways_and_anything_else_is_refused() {
        let seed = random().unwrap();
        assert_eq!(from_hex(&to_hex(&seed)), Some(seed));
        assert_eq!(from_hex("000102030405060708090a0B0c0d0e0f"), Some(std::array::from_fn(|at| at as u8)));
        let long = "0".repeat(33);
        for text in ["", "8f1c", "000102030405060708090a0b0c0d0e0", "+00102030405060708090a0b0c0d0e0f", &long, "ü0"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
