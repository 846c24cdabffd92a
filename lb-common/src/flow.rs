//! Addresses and flows, in both families.

use core::{fmt::Debug, hash::Hash, net::IpAddr};

use crate::hash::HashKey;

/// An IPv4 address as it lies in a header.
pub type V4Addr = u32;
/// An IPv6 address as it lies in a header, in four words.
pub type V6Addr = [u32; 4];

/// What a family's address can do; everything else is generic over it.
pub trait Addr: Copy + Eq + Hash + Debug + Sized {
    /// The keyed hash of a flow of this family, over 64 bits.
    fn hash_flow(key: &HashKey, flow: &Flow<Self>) -> u64;
    /// The keyed hash of a client address alone, for session affinity.
    fn hash_client(key: &HashKey, client: &Self) -> u64;
    /// Its first 4 or 16 bytes, as maps of both families hold it: see [`AnyAddr`].
    fn from_any(any: &AnyAddr) -> Self;
    fn to_any(self) -> AnyAddr;
    /// A number of which the high bits differ for near addresses: see [`crate::filter`].
    fn scatter(&self) -> u32;
    /// The one's complement sum of its words, for checksums (see [`crate::checksum`]).
    fn sum(self) -> u64;
    /// The same address, read word by word: from one map value to another, a copy as a whole
    /// becomes a call of `memmove`, byte by byte.
    fn read(&self) -> Self;
}

/// An address of either family: an IPv4 address fills the first word, the others are zero.
pub type AnyAddr = [u32; 4];

/// The words of `address` as they lie in a header.
pub fn any_addr(address: IpAddr) -> AnyAddr {
    match address {
        IpAddr::V4(v4) => [v4_addr(v4), 0, 0, 0],
        IpAddr::V6(v6) => v6_addr(v6),
    }
}

pub const fn v4_addr(address: core::net::Ipv4Addr) -> V4Addr {
    u32::from_ne_bytes(address.octets())
}

pub fn v6_addr(address: core::net::Ipv6Addr) -> V6Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The address that `words` hold; the family says how many of them count.
pub fn ip_addr(family: Family, words: AnyAddr) -> IpAddr {
    match family {
        Family::V4 => {
            let [first, ..] = words;
            IpAddr::from(first.to_ne_bytes())
        }
        Family::V6 => {
            let mut octets = [0; 16];
            for (to, word) in octets.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::from(octets)
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: &IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// 4 or 6, as maps and metrics write it.
    pub const fn number(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    /// `IPv4` or `IPv6`, as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    pub const fn from_number(number: u8) -> Option<Family> {
        match number {
            4 => Some(Family::V4),
            6 => Some(Family::V6),
            _ => None,
        }
    }
}

/// A TCP 5-tuple as a packet carries it: 12 bytes for IPv4, 36 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow<A> {
    pub src: A,
    pub dst: A,
    pub src_port_be: u16,
    pub dst_port_be: u16,
}

const _: () = assert!(size_of::<Flow<V4Addr>>() == 12);
const _: () = assert!(size_of::<Flow<V6Addr>>() == 36);

impl<A: Addr> Flow<A> {
    /// The same flow, read word by word: see [`Addr::read`].
    #[inline(always)]
    pub fn read(&self) -> Self {
        Self {
            src: self.src.read(),
            dst: self.dst.read(),
            src_port_be: self.src_port_be,
            dst_port_be: self.dst_port_be,
        }
    }

    /// The flow of the answering packets.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst.read(),
            dst: self.src.read(),
            src_port_be: self.dst_port_be,
            dst_port_be: self.src_port_be,
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{Flow, V4Addr, V6Addr};

    // SAFETY: integers only, without padding: the sizes are asserted above.
    unsafe impl aya::Pod for Flow<V4Addr> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow<V6Addr> {}
}

impl Addr for V4Addr {
    #[inline(always)]
    fn hash_flow(key: &HashKey, flow: &Flow<Self>) -> u64 {
        key.hash4([flow.src, flow.dst, ports(flow), 0])
    }

    #[inline(always)]
    fn hash_client(key: &HashKey, client: &Self) -> u64 {
        key.hash4([*client, 0, 0, 0])
    }

    #[inline(always)]
    fn from_any(any: &AnyAddr) -> Self {
        let [first, ..] = *any;
        first
    }

    #[inline(always)]
    fn to_any(self) -> AnyAddr {
        [self, 0, 0, 0]
    }

    #[inline(always)]
    fn scatter(&self) -> u32 {
        self.wrapping_mul(SCATTER)
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    fn read(&self) -> Self {
        *self
    }
}

impl Addr for V6Addr {
    #[inline(always)]
    fn hash_flow(key: &HashKey, flow: &Flow<Self>) -> u64 {
        let [a, b, c, d] = flow.src;
        let [e, f, g, h] = flow.dst;
        key.hash10([a, b, c, d, e, f, g, h, ports(flow), 0])
    }

    #[inline(always)]
    fn hash_client(key: &HashKey, client: &Self) -> u64 {
        key.hash4(*client)
    }

    #[inline(always)]
    fn from_any(any: &AnyAddr) -> Self {
        any.read()
    }

    #[inline(always)]
    fn to_any(self) -> AnyAddr {
        self
    }

    #[inline(always)]
    fn scatter(&self) -> u32 {
        let [a, b, c, d] = self;
        a.wrapping_add(b.wrapping_mul(0x85eb_ca6b))
            .wrapping_add(c.wrapping_mul(0xc2b2_ae35))
            .wrapping_add(*d)
            .wrapping_mul(SCATTER)
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        let [a, b, c, d] = self;
        a as u64 + b as u64 + c as u64 + d as u64
    }

    #[inline(always)]
    fn read(&self) -> Self {
        let [a, b, c, d] = self;
        [*a, *b, *c, *d]
    }
}

/// 2^32 over the golden ratio (Knuth, TAOCP 6.4).
const SCATTER: u32 = 0x9e37_79b1;

#[inline(always)]
fn ports<A>(flow: &Flow<A>) -> u32 {
    // Through network order, so that nodes of either endianness agree.
    ((u16::from_be(flow.src_port_be) as u32) << 16) | u16::from_be(flow.dst_port_be) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_words_and_back() {
        for text in ["192.0.2.10", "255.255.255.255", "2001:db8::10", "::", "fe80::1:2:3"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(ip_addr(Family::of(&address), any_addr(address)), address);
        }
    }
}
