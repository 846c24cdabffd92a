//! Finds free ring ranges, service ids, counters and backend indexes, given those that an image
//! already uses.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    limits::{MAX_BACKENDS, MAX_VIP_PORTS, RING_ARENA_SLOTS},
    slot::REJECT,
};

use super::image::Image;
use crate::model::MAX_RING_SIZE;

/// The number of entries of `SERVICE_STATS`.
pub const SERVICE_STATS_LEN: u32 = 2 * MAX_VIP_PORTS;

/// The ring ranges in use, by offset.
#[derive(Default)]
pub struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    /// Every range that a service of `image` names, wanted or not, because programs may be reading
    /// it. Ranges longer than any valid ring are ignored.
    pub fn of(image: &Image) -> Self {
        let mut ranges = Self::default();
        for service in image.services.values().filter(|service| service.ring_len <= MAX_RING_SIZE) {
            ranges.take(service.ring_offset, service.ring_len);
        }
        ranges
    }

    pub fn take(&mut self, offset: u32, len: u32) {
        let taken = self.0.entry(offset).or_default();
        *taken = len.max(*taken);
    }

    /// No room for any range.
    pub fn none() -> Self {
        Self(BTreeMap::from([(0, RING_ARENA_SLOTS)]))
    }

    /// Takes the first free range of length `len`; `None` if there is none.
    pub fn allocate(&mut self, len: u32) -> Option<u32> {
        let mut free = 0_u32;
        for (offset, taken) in &self.0 {
            if offset.checked_sub(free).is_some_and(|gap| gap >= len) {
                break;
            }
            free = free.max(offset.saturating_add(*taken));
        }
        let fits = free.checked_add(len).is_some_and(|end| end <= RING_ARENA_SLOTS);
        fits.then(|| {
            self.take(free, len);
            free
        })
    }
}

/// Whether two ranges share a slot.
pub fn overlap((a, a_len): (u32, u32), (b, b_len): (u32, u32)) -> bool {
    u64::from(a) < u64::from(b) + u64::from(b_len) && u64::from(b) < u64::from(a) + u64::from(a_len)
}

/// Assigns numbers that are not taken, lowest first, starting at `next`.
pub struct Numbers {
    taken: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Numbers {
    /// Ids of services.
    pub fn service_ids(image: &Image) -> Self {
        let services = image.services.values().map(|service| service.id);
        let backends = image.backends.values().filter(|backend| backend.family != 0).map(|backend| backend.service);
        Self { taken: services.chain(backends).collect(), next: 1, end: u32::MAX }
    }

    /// Indexes of `SERVICE_STATS`; `in_use` are the indexes that flows still name.
    pub fn service_stats(image: &Image, in_use: &BTreeSet<u32>) -> Self {
        let services = image.services.values().map(|service| service.stats);
        Self { taken: services.chain(in_use.iter().copied()).collect(), next: 0, end: SERVICE_STATS_LEN }
    }

    /// Indexes of `BACKENDS` that are not in use and not named by any slot (`named`) or flow
    /// (`in_use`). A grace period must pass before they are written.
    pub fn backends(image: &Image, named: &BTreeSet<u32>, in_use: &BTreeSet<u32>) -> Self {
        let entries = image.backends.iter().filter(|(_, backend)| backend.family != 0).map(|(index, _)| *index);
        Self::backends_except(entries.chain(named.iter().copied()).chain(in_use.iter().copied()).collect())
    }

    /// Indexes of `BACKENDS` other than these.
    pub fn backends_except(taken: BTreeSet<u32>) -> Self {
        Self { taken, next: REJECT + 1, end: MAX_BACKENDS }
    }

    pub fn take(&mut self, number: u32) {
        self.taken.insert(number);
    }

    /// No number at all.
    pub fn none() -> Self {
        Self { taken: BTreeSet::new(), next: 0, end: 0 }
    }

    pub fn allocate(&mut self) -> Option<u32> {
        let number = (self.next..self.end).find(|number| !self.taken.contains(number))?;
        self.next = number + 1;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::backend::Backend;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_fill_gaps_first(lens in proptest::collection::vec(1..5000_u32, 1..60), freed in 0..60_usize) {
            let mut ranges = Ranges::default();
            let mut taken: Vec<(u32, u32)> = lens.iter().map(|len| (ranges.allocate(*len).unwrap(), *len)).collect();
            for (at, one) in taken.iter().enumerate() {
                prop_assert!(taken.iter().skip(at + 1).all(|other| !overlap(*one, *other)));
            }
            let (offset, len) = taken.remove(freed % taken.len());
            ranges.0.remove(&offset);
            prop_assert_eq!(ranges.allocate(len), Some(offset));
        }
    }

    #[test]
    fn full_arena_is_said() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.allocate(RING_ARENA_SLOTS), Some(0));
        assert_eq!(ranges.allocate(1), None);
    }

    #[test]
    fn index_that_a_slot_or_a_flow_still_names_is_not_given_again() {
        let mut image = Image::default();
        image.backends.insert(1, Backend { family: 4, ..Backend::FREE });
        image.backends.insert(2, Backend { generation: 7, ..Backend::FREE });
        let mut numbers = Numbers::backends(&image, &BTreeSet::from([1, 3, 4]), &BTreeSet::from([5]));
        assert_eq!([numbers.allocate(), numbers.allocate()], [Some(2), Some(6)]);
    }
}
