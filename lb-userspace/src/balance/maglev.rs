//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4), with weights.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::declared::{Declared, Keys};

/// The owner of each slot, as an index into the declared backends; empty if no backend has a
/// weight. Indexes have 16 bits, because there are many rings; the largest ring can have some
/// 52,000 backends (`SLOTS_PER_BACKEND`).
///
/// As in the paper, backends take turns, and at its turn a backend takes the next free slot of its
/// permutation. With weights, a backend's k-th turn comes at the time (2k − 1) / weight. This makes
/// the number of turns as proportional to the weight as whole numbers allow (Webster's method).
pub fn table(declared: &Declared, keys: &[Keys]) -> Vec<u16> {
    let size = u64::from(declared.ring_size);
    let mut turns: Vec<Turn> = (0..FREE)
        .zip(declared.backends.iter().zip(keys))
        .filter(|(_, ((_, weight), _))| *weight > 0)
        .map(|(backend, ((_, weight), keys))| Turn {
            number: 1,
            weight: u64::from(*weight),
            backend,
            at: keys.offset % size,
            skip: keys.skip % (size - 1) + 1,
        })
        .collect();
    if turns.is_empty() {
        return Vec::new();
    }
    let mut table = vec![FREE; declared.ring_size as usize];
    let slots = table.len();
    if turns.windows(2).all(|pair| matches!(pair, [one, other] if one.weight == other.weight)) {
        // With equal weights, the times give turns in the order of the backends, over and over.
        let mut free = slots;
        while free > 0 {
            for turn in turns.iter_mut().take(free) {
                turn.take_slot(&mut table, size);
            }
            free = free.saturating_sub(turns.len());
        }
    } else {
        let mut turns = BinaryHeap::from(turns);
        for _ in 0..slots {
            let Some(mut turn) = turns.peek_mut() else { break };
            turn.take_slot(&mut table, size);
            turn.number += 2;
        }
    }
    table
}

/// A slot that no backend has taken yet.
const FREE: u16 = u16::MAX;

/// A backend's next turn.
struct Turn {
    /// 2k − 1 for the k-th turn.
    number: u64,
    weight: u64,
    backend: u16,
    /// The slot that the backend tries first.
    at: u64,
    skip: u64,
}

impl Turn {
    /// Takes the next free slot of the backend's permutation. There must be one: the size is prime
    /// and the skip is smaller, so that the permutation has every slot.
    fn take_slot(&mut self, table: &mut [u16], size: u64) {
        while let Some(slot) = table.get_mut(self.at as usize) {
            self.at += self.skip;
            if self.at >= size {
                self.at -= size;
            }
            if *slot == FREE {
                *slot = self.backend;
                return;
            }
        }
    }
}

impl Ord for Turn {
    /// The greatest turn comes first: the one with the earliest time, then the one of the first
    /// backend.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.number * self.weight).cmp(&(self.number * other.weight)).then_with(|| other.backend.cmp(&self.backend))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Turn {}
