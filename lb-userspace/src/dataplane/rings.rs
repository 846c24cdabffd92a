//! The ring arena, `RINGS`: slots that the programs read while the agent changes them.

use std::{io, path::Path, sync::atomic::Ordering};

use aya::maps::MapData;
use lb_common::{limits::map, slot::Slot};

use super::raw::Words;

pub struct Rings(Words);

impl Rings {
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(pin_dir.join(map::RINGS)).map_err(io::Error::other)?;
        Words::map(&data).map(Self)
    }

    /// How many slots the arena has.
    pub fn len(&self) -> usize {
        self.0.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slots from `offset` on; fewer than `len` where the arena ends.
    pub fn read(&self, offset: u32, len: u32) -> Vec<Slot> {
        let words = self.0.as_slice().iter().skip(offset as usize).take(len as usize);
        words.map(|word| Slot(word.load(Ordering::Relaxed))).collect()
    }

    /// Fills the range from `offset` on, which no service names; false if the arena ends before it does.
    pub fn fill(&self, offset: u32, slots: &[Slot]) -> bool {
        let words = self.0.as_slice().get(offset as usize..).unwrap_or_default();
        for (word, slot) in words.iter().zip(slots) {
            word.store(slot.0, Ordering::Release);
        }
        words.len() >= slots.len()
    }

    /// Replaces the slot at `at` if it still holds `from`; the program may have set a flag meanwhile. Otherwise what it holds is the error.
    pub fn compare_exchange(&self, at: u32, from: Slot, to: Slot) -> Result<(), Slot> {
        let Some(word) = self.0.as_slice().get(at as usize) else { return Err(from) };
        word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).map(|_| ()).map_err(Slot)
    }
}
