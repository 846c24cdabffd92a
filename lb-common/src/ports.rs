//! The ports that SNAT may use: some ranges, walked in an order that returns to a port the latest
//! possible.

/// How many ranges a pool can have.
pub const MAX_RANGES: usize = 4;

/// The pool of ports, the same for every SNAT address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortPool {
    /// First port and number of ports of each range; unused ranges have no ports.
    pub ranges: [PortRange; MAX_RANGES],
    /// Ports in all ranges together.
    pub size: u32,
    /// Coprime to `size`, so that the walk meets every port before it meets one again.
    pub stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortRange {
    pub first: u16,
    pub count: u16,
}

const _: () = assert!(size_of::<PortPool>() == 24);

impl PortPool {
    /// The pool of inclusive `ranges` that do not overlap, at most [`MAX_RANGES`] of them; `seed`
    /// chooses the walk, so that a stranger can't guess the next port.
    pub fn new(ranges: impl IntoIterator<Item = (u16, u16)>, seed: u32) -> Self {
        let mut pool = Self { ranges: [PortRange::default(); MAX_RANGES], size: 0, stride: 1 };
        for (to, (first, last)) in pool.ranges.iter_mut().zip(ranges) {
            let count = last.saturating_sub(first).saturating_add(1);
            *to = PortRange { first, count };
            pool.size += count as u32;
        }
        if pool.size > 1 {
            let mut stride = 1 + seed % (pool.size - 1);
            while gcd(stride, pool.size) != 1 {
                stride = 1 + stride % (pool.size - 1);
            }
            pool.stride = stride;
        }
        pool
    }

    /// Port number `position` of the walk, in host order; 0 if the pool is empty. With several
    /// addresses `position / size` says which.
    #[inline(always)]
    pub fn walk(&self, position: u64) -> u16 {
        if self.size == 0 {
            return 0;
        }
        let mut at = (position.wrapping_mul(self.stride as u64) % self.size as u64) as u32;
        for range in &self.ranges {
            if at < range.count as u32 {
                return range.first.wrapping_add(at as u16);
            }
            at = at.wrapping_sub(range.count as u32);
        }
        0
    }

    /// Whether `port`, in host order, is in the pool.
    #[inline(always)]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| port.wrapping_sub(range.first) < range.count)
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn default_ranges_hold_what_they_say() {
        let pool = PortPool::new([(1024, 32767), (61000, 65535)], 99);
        assert_eq!(pool.size, 31744 + 4536);
        for (port, is_in) in [
            (1023, false),
            (1024, true),
            (32767, true),
            (32768, false),
            (60999, false),
            (61000, true),
            (65535, true),
            (0, false),
        ] {
            assert_eq!(pool.contains(port), is_in, "port {port}");
        }
    }

    proptest! {
        #[test]
        fn walk_meets_every_port_once_before_any_again(
            first in 1..60000_u16,
            count in 1..400_u16,
            second in 60400..60500_u16,
            seed: u32,
            start in 0..1_u64 << 40,
        ) {
            let pool = PortPool::new([(first, first + count - 1), (second, second + 7)], seed);
            let met: BTreeSet<u16> = (start..start + pool.size as u64).map(|at| pool.walk(at)).collect();
            prop_assert_eq!(met.len() as u32, pool.size);
            prop_assert!(met.iter().all(|port| pool.contains(*port)));
        }
    }
}
