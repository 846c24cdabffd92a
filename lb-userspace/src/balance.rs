//! Which backend owns which slot: pure functions of the declared backends and their eligibility.
//! Nodes with the same input get the same result.

mod candidates;
mod declared;
pub(crate) mod digest;
pub(crate) mod eligible;
mod maglev;

pub use declared::Declared;

use self::declared::Keys;

/// The ring of one service and family: its Maglev table, and the data needed to find the next
/// candidate of a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ring {
    declared: Declared,
    keys: Vec<Keys>,
    table: Vec<u16>,
}

impl Ring {
    pub fn new(declared: Declared) -> Self {
        let keys: Vec<Keys> = declared.backends.iter().map(|(address, _)| Keys::new(&declared.seed, address)).collect();
        let table = maglev::table(&declared, &keys);
        Self { declared, keys, table }
    }

    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// The owner of each slot, as an index into the declared backends; `None` if no backend is
    /// eligible.
    ///
    /// Only slots whose owner in the table is not eligible differ from the table; each of these
    /// slots goes to its own next candidate.
    pub fn owners(&self, is_eligible: Vec<bool>) -> impl Iterator<Item = Option<u32>> {
        let candidates = candidates::Candidates::new(&self.declared, &self.keys, &is_eligible);
        (0..self.declared.ring_size).map(move |slot| {
            // The table is empty if no backend has a weight.
            let owner = self.table.get(slot as usize).copied().map(u32::from);
            let is_eligible = |owner: &u32| is_eligible.get(*owner as usize).copied().unwrap_or(false);
            owner.filter(is_eligible).or_else(|| candidates.next(slot))
        })
    }
}

#[cfg(test)]
mod tests;
