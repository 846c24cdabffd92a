//! The ring arena `RINGS`: slots that the programs read while the agent changes them; and
//! `SLOT_TIMES`: since when the owners of each slot differ.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::MapData;
use lb_common::{limits::map, slot::Slot};

use super::{image::Slots, raw::Words, settle::change::follow};

pub struct Rings {
    slots: Words,
    /// The times of two slots in each word.
    times: Words,
    /// The times of slots that `times` has no room for, because no service needed it when the agent
    /// started. They are lost when the agent ends; after a restart, the time of such a slot starts
    /// anew.
    unsaved: Mutex<HashMap<u32, u32>>,
}

impl Rings {
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let words = |name: &str| {
            let data = MapData::from_pin(pin_dir.join(name)).map_err(io::Error::other)?;
            Words::map(&data)
        };
        Ok(Self { slots: words(map::RINGS)?, times: words(map::SLOT_TIMES)?, unsaved: Mutex::default() })
    }

    /// How many slots the arena has.
    pub fn len(&self) -> usize {
        self.slots.as_slice().len()
    }

    /// The slot at `at`; `None` beyond the arena.
    pub fn slot(&self, at: u32) -> Option<Slot> {
        self.slots.as_slice().get(at as usize).map(|word| Slot(word.load(Ordering::Acquire)))
    }

    /// Since when the owners of the slot at `at` differ, as [`super::settle::clock::deciseconds`];
    /// 0: not known.
    pub fn time(&self, at: u32) -> u32 {
        match self.half(at) {
            Some((word, shift)) => (word.load(Ordering::Relaxed) >> shift) as u32,
            None => self.unsaved().get(&at).copied().unwrap_or_default(),
        }
    }

    pub fn set_time(&self, at: u32, now_ds: u32) {
        let Some((word, shift)) = self.half(at) else {
            self.unsaved().insert(at, now_ds);
            return;
        };
        // The other half belongs to another slot, whose time may be set at the same moment.
        let of_others = !(u64::from(u32::MAX) << shift);
        let set = |word| Some(word & of_others | u64::from(now_ds) << shift);
        let _before = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, set);
    }

    /// The word with the time of the slot at `at`, and the position of that time's lowest bit;
    /// `None` if the map does not reach that far.
    fn half(&self, at: u32) -> Option<(&AtomicU64, u32)> {
        let word = self.times.as_slice().get(at as usize / 2)?;
        Some((word, at % 2 * u32::BITS))
    }

    fn unsaved(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the change `from` → `to` to the slot at `at`, whatever value it has by now, and
    /// returns its new value. If its owners were the same, its time is set first, so that an agent
    /// that dies in between leaves no slot in transition with an older time.
    pub fn change(&self, at: u32, from: Slot, to: Slot, now_ds: u32) -> Option<Slot> {
        let mut found = self.slot(at)?;
        loop {
            let next = follow(found, from, to);
            if next == found {
                return Some(found);
            }
            if !found.in_transition() && next.in_transition() {
                self.set_time(at, now_ds);
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
    /// meanwhile. Otherwise the error is the slot's current value, or `from` beyond the arena.
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
