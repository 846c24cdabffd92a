//! The ring arena `RINGS`: slots that the programs read while the agent changes them; and
//! `SLOT_CLOCKS`: since when the owners of each slot differ.

use std::{io, path::Path, sync::atomic::Ordering};

use aya::maps::MapData;
use lb_common::{limits::map, slot::Slot};

use super::{image::Slots, raw::Words, settle::change::follow};

pub struct Rings {
    slots: Words,
    clocks: Words,
}

impl Rings {
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let data = |name: &str| MapData::from_pin(pin_dir.join(name)).map_err(io::Error::other);
        Ok(Self { slots: Words::map(&data(map::RINGS)?)?, clocks: Words::map(&data(map::SLOT_CLOCKS)?)? })
    }

    /// How many slots the arena has.
    pub fn len(&self) -> usize {
        self.slots.as_slice().len()
    }

    /// The slot at `at`; `None` beyond the arena.
    pub fn slot(&self, at: u32) -> Option<Slot> {
        self.slots.as_slice().get(at as usize).map(|word| Slot(word.load(Ordering::Acquire)))
    }

    /// The clock of the slot at `at`.
    pub fn clock(&self, at: u32) -> u32 {
        let word = self.clocks.as_slice().get(at as usize).map_or(0, |word| word.load(Ordering::Relaxed));
        let [a, b, c, d, ..] = word.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    pub fn set_clock(&self, at: u32, now_ds: u32) {
        if let Some(word) = self.clocks.as_slice().get(at as usize) {
            let [a, b, c, d] = now_ds.to_ne_bytes();
            word.store(u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), Ordering::Release);
        }
    }

    /// Applies the change `from` → `to` to the slot at `at`, whatever value it has by now, and
    /// returns its new value. If its owners were the same, its clock is set first, so that an agent
    /// that dies in between leaves no slot in transition with an older clock.
    pub fn change(&self, at: u32, from: Slot, to: Slot, now_ds: u32) -> Option<Slot> {
        let mut found = self.slot(at)?;
        loop {
            let next = follow(found, from, to);
            if next == found {
                return Some(found);
            }
            if !found.in_transition() && next.in_transition() {
                self.set_clock(at, now_ds);
            }
            match self.compare_exchange(at, found, next) {
                Ok(()) => return Some(next),
                Err(other) => found = other,
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the range from `offset` on, which no service may name; returns false if the range goes
    /// beyond the arena.
    pub fn fill(&self, offset: u32, slots: &[Slot]) -> bool {
        let words = self.slots.as_slice().get(offset as usize..).unwrap_or_default();
        for (word, slot) in words.iter().zip(slots) {
            word.store(slot.0, Ordering::Release);
        }
        words.len() >= slots.len()
    }

    /// Replaces the slot at `at` if it still holds `from`, because the program may have set a flag
    /// meanwhile. Otherwise the error is the slot's current value.
    pub fn compare_exchange(&self, at: u32, from: Slot, to: Slot) -> Result<(), Slot> {
        let Some(word) = self.slots.as_slice().get(at as usize) else { return Err(from) };
        word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).map(|_| ()).map_err(Slot)
    }
}

impl Slots for Rings {
    fn range(&self, offset: u32, len: u32) -> Vec<Slot> {
        let words = self.slots.as_slice().iter().skip(offset as usize).take(len as usize);
        words.map(|word| Slot(word.load(Ordering::Acquire))).collect()
    }
}
