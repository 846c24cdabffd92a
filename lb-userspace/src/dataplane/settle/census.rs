//! Counts exceptions per backend, per VIP and per kind, and the slots that wait to settle.

use std::collections::BTreeMap;

use crate::dataplane::tables::TableFill;
use crate::dataplane::tables::dsr::ExceptionKind;

/// What a pass has found and done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettleCensus {
    /// By the index of the backend.
    pub backends: BTreeMap<u32, ExceptionCounts>,
    /// By the index of the VIP's counters.
    pub vips: BTreeMap<u32, ExceptionCounts>,
    /// By the offset of the ring.
    pub rings: BTreeMap<u32, SlotCounts>,
    /// How full the tables are.
    pub tables: Vec<TableFill>,
    /// Slots whose transition this pass has ended; exceptions may be left.
    pub settled: u64,
    /// Slots from which this pass has removed the last exceptions and flags.
    pub collected: u64,
    /// Exception entries removed.
    pub removed: u64,
}

impl SettleCensus {
    /// Whether every slot is settled and no table has an entry, so that the next pass would find
    /// the same.
    pub fn has_nothing_left(&self) -> bool {
        let did_nothing = self.settled + self.collected + self.removed == 0;
        did_nothing
            && self.tables.iter().all(|table| table.entries == 0)
            && self.rings.values().all(|counts| *counts == SlotCounts::default())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExceptionCounts {
    pub half_open: u64,
    pub established: u64,
    pub seen: u64,
}

impl ExceptionCounts {
    pub const fn of(&self, kind: ExceptionKind) -> u64 {
        match kind {
            ExceptionKind::HalfOpen => self.half_open,
            ExceptionKind::Established => self.established,
            ExceptionKind::Seen => self.seen,
        }
    }

    pub const fn all(&self) -> u64 {
        self.half_open + self.established + self.seen
    }

    pub(super) const fn add(&mut self, kind: ExceptionKind) {
        match kind {
            ExceptionKind::HalfOpen => self.half_open += 1,
            ExceptionKind::Established => self.established += 1,
            ExceptionKind::Seen => self.seen += 1,
        }
    }
}

/// Slots of a ring that are not settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotCounts {
    /// The current and the previous owner differ.
    pub in_transition: u64,
    /// The owners are the same, and the slot has exceptions or may have some.
    pub tracked: u64,
    /// The slot is due to settle, but ESTABLISHED has no room for its flows.
    pub without_room: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_that_found_or_did_anything_is_followed_by_another() {
        let empty = TableFill { map: "SEEN_V4", entries: 0, max_entries: 9 };
        let nothing = SettleCensus {
            rings: BTreeMap::from([(7, SlotCounts::default())]),
            tables: vec![empty.clone()],
            ..SettleCensus::default()
        };
        assert!(nothing.has_nothing_left());
        let tracked = SlotCounts { tracked: 1, ..SlotCounts::default() };
        for other in [
            SettleCensus { settled: 1, ..nothing.clone() },
            SettleCensus { removed: 1, ..nothing.clone() },
            SettleCensus { rings: BTreeMap::from([(7, tracked)]), ..nothing.clone() },
            SettleCensus { tables: vec![TableFill { entries: 1, ..empty }], ..nothing.clone() },
        ] {
            assert!(!other.has_nothing_left(), "{other:?}");
        }
    }
}
