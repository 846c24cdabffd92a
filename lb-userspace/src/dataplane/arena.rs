//! Finds free ring ranges, service ids, counters and backend indexes, given those that an image
//! already uses.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::slot::REJECT;

use super::image::Image;
use crate::model::{
    MAX_RING_SIZE,
    limits::{Exceeded, Limit},
};

/// The ring ranges in use.
pub struct Ranges {
    /// Lengths, by offset.
    taken: BTreeMap<u32, u32>,
    /// Where the search for a free range begins, by the length of the range: none of that length is
    /// free before this offset.
    from: BTreeMap<u32, u32>,
    /// The number of slots of the arena.
    slots: u32,
}

impl Ranges {
    /// Every range that a service of `image` names, wanted or not, because programs may be reading
    /// it. Ranges longer than any valid ring are ignored. The arena has `slots` slots.
    pub fn of(image: &Image, slots: u32) -> Self {
        let mut ranges = Self { taken: BTreeMap::new(), from: BTreeMap::new(), slots };
        for service in image.services.values().filter(|service| service.ring_len <= MAX_RING_SIZE) {
            ranges.take(service.ring_offset, service.ring_len);
        }
        ranges
    }

    pub fn take(&mut self, offset: u32, len: u32) {
        self.from.clear();
        self.insert(offset, len);
    }

    fn insert(&mut self, offset: u32, len: u32) {
        let taken = self.taken.entry(offset).or_default();
        *taken = len.max(*taken);
    }

    /// Gives back a range that was allocated.
    pub fn give_back(&mut self, offset: u32) {
        self.from.clear();
        self.taken.remove(&offset);
    }

    /// An arena without room for any range.
    pub fn none() -> Self {
        Self { taken: BTreeMap::new(), from: BTreeMap::new(), slots: 0 }
    }

    /// Takes the first free range of length `len`; the error says how many slots the arena would
    /// need.
    pub fn allocate(&mut self, len: u32) -> Result<u32, Exceeded> {
        // All ranges that begin before the last range of this length also end before it.
        let mut free = self.from.get(&len).copied().unwrap_or_default();
        for (offset, taken) in self.taken.range(free..) {
            if offset.checked_sub(free).is_some_and(|gap| gap >= len) {
                break;
            }
            free = free.max(offset.saturating_add(*taken));
        }
        let needed = u64::from(free) + u64::from(len);
        if needed > u64::from(self.slots) {
            return Err(Exceeded { limit: Limit::RingSlots, allows: self.slots, needed, family: None });
        }
        self.insert(free, len);
        self.from.insert(len, free);
        Ok(free)
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
    first: u32,
    end: u32,
    /// The limit from which `end` follows, and how many numbers there are for each object that the
    /// limit allows.
    limit: (Limit, u32),
}

impl Numbers {
    /// Ids of services.
    pub fn service_ids(image: &Image) -> Self {
        let services = image.services.values().map(|service| service.id);
        let backends = image.backends.values().filter(|backend| backend.family != 0).map(|backend| backend.service);
        Self {
            taken: services.chain(backends).collect(),
            next: 1,
            first: 1,
            end: u32::MAX,
            limit: (Limit::Services, 2),
        }
    }

    /// Indexes of `SERVICE_STATS`, which has `end` entries; `in_use` are the indexes that flows
    /// still name.
    pub fn service_stats(image: &Image, in_use: &BTreeSet<u32>, end: u32) -> Self {
        let services = image.services.values().map(|service| service.stats);
        let taken = services.chain(in_use.iter().copied()).collect();
        Self { taken, next: 0, first: 0, end, limit: (Limit::Services, 2) }
    }

    /// Indexes of `BACKENDS`, which has `end` entries, that are not in use and not named by any
    /// slot (`named`) or flow (`in_use`). A grace period must pass before they are written.
    pub fn backends(image: &Image, named: &BTreeSet<u32>, in_use: &BTreeSet<u32>, end: u32) -> Self {
        let entries = image.backends.iter().filter(|(_, backend)| backend.family != 0).map(|(index, _)| *index);
        Self::backends_except(entries.chain(named.iter().copied()).chain(in_use.iter().copied()).collect(), end)
    }

    /// Indexes of `BACKENDS`, which has `end` entries, other than these.
    pub fn backends_except(taken: BTreeSet<u32>, end: u32) -> Self {
        Self { taken, next: REJECT + 1, first: REJECT + 1, end, limit: (Limit::Backends, 1) }
    }

    /// No numbers to assign.
    pub fn none() -> Self {
        Self { taken: BTreeSet::new(), next: 0, first: 0, end: 0, limit: (Limit::Services, 2) }
    }

    /// Where the search for the next free number begins.
    pub const fn mark(&self) -> u32 {
        self.next
    }

    /// Gives back the numbers taken since the mark; without a mark, all.
    pub fn back_to(&mut self, mark: Option<u32>) {
        self.next = mark.unwrap_or(self.first);
    }

    /// Takes the next free number; the error says how high the limit would have to be.
    pub fn allocate(&mut self) -> Result<u32, Exceeded> {
        let number = (self.next..u32::MAX).find(|number| !self.taken.contains(number)).unwrap_or(u32::MAX);
        if number >= self.end {
            let (limit, each) = self.limit;
            let needed = (u64::from(number) + 1).div_ceil(u64::from(each));
            return Err(Exceeded { limit, allows: self.end / each, needed, family: None });
        }
        self.next = number + 1;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::backend::Backend;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_fill_gaps_first(
            lens in proptest::collection::vec(1..5000_u32, 1..60),
            freed in 0..60_usize,
        ) {
            let mut ranges = Ranges::of(&Image::default(), 1 << 22);
            let mut taken: Vec<(u32, u32)> = lens.iter().map(|len| (ranges.allocate(*len).unwrap(), *len)).collect();
            for (at, one) in taken.iter().enumerate() {
                prop_assert!(taken.iter().skip(at + 1).all(|other| !overlap(*one, *other)));
            }
            let (offset, len) = taken.remove(freed % taken.len());
            ranges.taken.remove(&offset);
            ranges.from.clear();
            prop_assert_eq!(ranges.allocate(len), Ok(offset));
        }
    }

    #[test]
    fn full_arena_is_said() {
        let mut ranges = Ranges::of(&Image::default(), 5000);
        assert_eq!(ranges.allocate(5000), Ok(0));
        let full = ranges.allocate(1).unwrap_err().to_string();
        assert!(full.starts_with("limits.ringSlots allows 5000 ") && full.contains("5001 are needed"), "{full}");
    }

    #[test]
    fn index_that_a_slot_or_a_flow_still_names_is_not_given_again() {
        let mut image = Image::default();
        image.backends.insert(1, Backend { family: 4, ..Backend::FREE });
        image.backends.insert(2, Backend { generation: 7, ..Backend::FREE });
        let mut numbers = Numbers::backends(&image, &BTreeSet::from([1, 3, 4]), &BTreeSet::from([5]), 7);
        assert_eq!([numbers.allocate(), numbers.allocate()], [Ok(2), Ok(6)]);
        let full = numbers.allocate().unwrap_err().to_string();
        assert!(full.starts_with("limits.backends allows 7 ") && full.contains("8 are needed"), "{full}");
        let mut stats = Numbers::service_stats(&image, &BTreeSet::from([0, 1, 2]), 3);
        assert_eq!(stats.allocate().unwrap_err().needed, 2, "there are two for each that is allowed");
    }
}
