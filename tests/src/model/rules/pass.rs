//! Settling and collecting, step by step: between any two of them packets and changes may come.

use std::collections::BTreeMap;

use super::{
    super::{CLOSING_TIMEOUT, ESTABLISHED_TIMEOUT, HALF_OPEN_TIMEOUT, SETTLE_TIME, SLOTS},
    Entry, Owner, Rule, Rules, Slot, Table,
};

#[derive(Default)]
pub struct Pass {
    stage: Stage,
    /// What SEEN held of the slots that settle.
    scanned: Vec<(u8, Entry)>,
    /// What is to be deleted.
    doomed: Vec<Doomed>,
    /// The slots that are collected, their owner, and whether entries are left.
    collected: BTreeMap<usize, (Owner, bool)>,
}

#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Mark,
    Keep,
    Unmark,
    Forget,
    Collect,
    Look,
    Sweep,
    Finish,
}

#[derive(Clone, Copy, PartialEq)]
enum Which {
    Established,
    HalfOpen,
    Seen,
}

#[derive(Clone, Copy)]
struct Doomed {
    which: Which,
    flow: u8,
    entry: Entry,
    /// Whether it goes only because it agrees with the ring.
    agrees_only: bool,
}

/// Does one step; false if it was the last.
pub fn step(rules: &mut Rules) -> bool {
    let stage = rules.pass.stage;
    rules.pass.stage = match stage {
        Stage::Mark => Stage::Keep,
        Stage::Keep => Stage::Unmark,
        Stage::Unmark => Stage::Forget,
        Stage::Forget => Stage::Collect,
        Stage::Collect => Stage::Look,
        Stage::Look => Stage::Sweep,
        Stage::Sweep => Stage::Finish,
        Stage::Finish => Stage::Mark,
    };
    match stage {
        Stage::Mark => rules.mark(),
        Stage::Keep => rules.keep(),
        Stage::Unmark => rules.slots.iter_mut().for_each(|slot| slot.is_settling = false),
        Stage::Forget => rules.forget(),
        Stage::Collect => rules.collect(),
        Stage::Look => rules.look(),
        Stage::Sweep => rules.sweep(),
        Stage::Finish => rules.finish(),
    }
    !matches!(stage, Stage::Finish)
}

impl Rules {
    /// Slots whose time has come: their owners agree now.
    fn mark(&mut self) {
        for at in 0..self.slots.len() {
            let Slot { current, previous, since, .. } = self.slots[at];
            let is_due = self.now - since >= SETTLE_TIME || !self.has(Rule::SettleTime);
            let drains = self.owners[previous].drains_since.is_some() && self.is_serving(previous);
            if current != previous && is_due && !(drains && self.has(Rule::DrainingKeeps)) {
                let slot = &mut self.slots[at];
                (slot.previous, slot.is_tracked, slot.is_settling) = (current, true, true);
            }
        }
    }

    /// What SEEN holds of them becomes established: also of a backend that does not serve at the
    /// moment, for it may again; and instead of an entry whose backend does not.
    fn keep(&mut self) {
        let settling = |flow: &u8| self.slots[usize::from(flow % SLOTS)].is_settling;
        self.pass.scanned =
            self.seen.iter().filter(|(flow, _)| settling(flow)).map(|(f, entry)| (*f, *entry)).collect();
        for (flow, entry) in self.pass.scanned.clone() {
            let is_taken = self.established.get(&flow).is_some_and(|there| self.is_serving(there.owner));
            if self.has(Rule::SeenIsKept) && !self.owners[entry.owner].is_gone && !is_taken {
                self.established.insert(flow, entry);
            }
        }
    }

    fn forget(&mut self) {
        for (flow, entry) in std::mem::take(&mut self.pass.scanned) {
            if self.seen.get(&flow).is_some_and(|now| now.owner == entry.owner) {
                self.seen.remove(&flow);
            }
        }
    }

    fn collect(&mut self) {
        self.pass.collected.clear();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.current == slot.previous && slot.is_tracked && !slot.is_settling {
                (slot.is_collecting, slot.is_written) = (true, false);
                self.pass.collected.insert(at, (slot.current, false));
            }
        }
    }

    /// What is over, or agrees with the ring, goes.
    fn look(&mut self) {
        let mut doomed = Vec::new();
        for which in [Which::Established, Which::HalfOpen, Which::Seen] {
            let table = self.table(which).clone();
            for (flow, entry) in table {
                let timeout = match which {
                    _ if entry.is_closing => CLOSING_TIMEOUT,
                    Which::HalfOpen => HALF_OPEN_TIMEOUT,
                    _ => ESTABLISHED_TIMEOUT,
                };
                let is_over = self.now - entry.last >= timeout || self.owners[entry.owner].is_gone;
                let at = usize::from(flow % SLOTS);
                let collected = self.pass.collected.get(&at).copied();
                let agrees =
                    collected.is_some_and(|(owner, _)| owner == entry.owner || !self.has(Rule::DifferentStays));
                if is_over || agrees {
                    doomed.push(Doomed { which, flow, entry, agrees_only: !is_over });
                } else if let Some((_, is_left)) = self.pass.collected.get_mut(&at) {
                    *is_left = true;
                }
            }
        }
        self.pass.doomed = doomed;
    }

    /// If a slot has changed meanwhile, an entry that agreed with it stays: a miss would go to the
    /// same owner, `previous`, but only until the slot settles, and that time has begun already.
    fn sweep(&mut self) {
        for Doomed { which, flow, entry, agrees_only } in std::mem::take(&mut self.pass.doomed) {
            let at = usize::from(flow % SLOTS);
            let has_changed = self.slots[at].current != self.slots[at].previous;
            let is_kept = agrees_only && has_changed && self.has(Rule::DifferentStays);
            match self.table(which).get(&flow) {
                Some(found) if *found == entry && !is_kept => drop(self.table(which).remove(&flow)),
                Some(_) => {
                    if let Some((_, is_left)) = self.pass.collected.get_mut(&at) {
                        *is_left = true;
                    }
                }
                None => {}
            }
        }
    }

    /// A slot of which no entry is left is settled.
    fn finish(&mut self) {
        for (at, (owner, is_left)) in std::mem::take(&mut self.pass.collected) {
            let marks = !self.has(Rule::TrackedUntilNone);
            let slot = &mut self.slots[at];
            let is_clean = (slot.current, slot.previous) == (owner, owner) && !slot.is_settling && !slot.is_written;
            if is_clean && (!is_left || marks) {
                slot.is_tracked = false;
            }
            (slot.is_collecting, slot.is_written) = (false, false);
        }
    }

    fn table(&mut self, which: Which) -> &mut Table {
        match which {
            Which::Established => &mut self.established,
            Which::HalfOpen => &mut self.half_open,
            Which::Seen => &mut self.seen,
        }
    }
}
