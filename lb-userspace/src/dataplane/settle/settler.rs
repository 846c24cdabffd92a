//! One settle-and-collect pass, in steps. Some steps need a grace period between them, after which
//! no program still acts on what it read earlier. docs/architecture.md says why each step is safe
//! while the programs run.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use aya::maps::{Array, MapData};
use lb_common::{
    backend::Backend,
    flow::{Family, V4Addr, V6Addr},
    limits::map,
    slot::Slot,
};

use super::{
    census::SettleCensus,
    clock::deciseconds,
    family::{FamilyPass, Former, PassInputs},
    judge::{SlotProgress, progress},
    scope::{RingScope, SettleScope},
};
use crate::dataplane::{
    maps::{self, MapsError, grace_period},
    rings::Rings,
    tables::dsr::DsrTables,
};

/// Settles slots and collects exceptions. It has its own map handles, so the owner of the maps can
/// go on meanwhile.
pub struct Settler {
    rings: Arc<Rings>,
    backends: Array<MapData, Backend>,
    v4: FamilyPass<V4Addr>,
    v6: FamilyPass<V6Addr>,
    /// Slots that are settling and whose flows are to be kept. Slots whose flows found no room stay
    /// until the next pass.
    settling: HashMap<u32, Former>,
    /// The slots in `settling` whose flows found no room in this pass.
    refused: BTreeSet<u32>,
    /// Slots that this pass checks for remaining entries, with the `Slot::IN_*` flags of the tables
    /// that still hold some.
    collecting: HashMap<u32, u64>,
    census: SettleCensus,
}

impl Settler {
    /// Opens the maps that [`crate::dataplane::data_path::DataPath::open`] has pinned; `rings` are
    /// those that the owner of the maps changes.
    pub fn open(pin_dir: &Path, rings: Arc<Rings>) -> Result<Self, MapsError> {
        Ok(Self {
            rings,
            backends: maps::open(pin_dir, map::BACKENDS)?,
            v4: FamilyPass::new(DsrTables::open(pin_dir, Family::V4)?),
            v6: FamilyPass::new(DsrTables::open(pin_dir, Family::V6)?),
            settling: HashMap::new(),
            refused: BTreeSet::new(),
            collecting: HashMap::new(),
            census: SettleCensus::default(),
        })
    }

    /// Runs a whole pass. `now_ns` is CLOCK_BOOTTIME.
    pub fn pass(&mut self, scope: &SettleScope, now_ns: u64) -> Result<SettleCensus, MapsError> {
        if self.begin(scope, now_ns)? > 0 {
            grace_period()?;
            self.keep(scope, now_ns)?;
            grace_period()?;
            self.forget()?;
        }
        if self.mark(scope) > 0 {
            grace_period()?;
        }
        self.collect(scope, now_ns)?;
        Ok(self.finish(scope))
    }

    /// Step 1: makes the owners of slots that are due the same; the program looks in SEEN until
    /// [`Settler::keep`] is done. Returns the number of settling slots.
    pub fn begin(&mut self, scope: &SettleScope, now_ns: u64) -> Result<usize, MapsError> {
        self.census = SettleCensus::default();
        self.refused.clear();
        let mut due = Vec::new();
        let mut still = HashSet::new();
        // Many slots share few previous owners, so cache them.
        let mut known: HashMap<u32, Option<Backend>> = HashMap::new();
        for ring in &scope.rings {
            for (at, slot) in slots(&self.rings, ring).filter(|(_, slot)| !slot.is_settled()) {
                let index = slot.previous();
                let previous = known.entry(index).or_insert_with(|| self.backends.get(&index, 0).ok());
                match progress(slot, self.rings.time(at), previous.as_ref(), ring.settle_ns, now_ns) {
                    SlotProgress::Waits => {}
                    SlotProgress::SetClock => self.rings.set_time(at, deciseconds(now_ns)),
                    SlotProgress::Due => due.push((ring, at, slot)),
                    SlotProgress::Settling => drop(still.insert(at)),
                }
            }
        }
        for at in &still {
            self.settling.entry(*at).or_insert(Former::Anybody);
        }
        if !due.is_empty() {
            self.settle(scope, now_ns, due, &mut still)?;
        }
        self.settling.retain(|at, _| still.contains(at));
        Ok(self.settling.len())
    }

    /// Begins to settle those of the due slots whose flows fit into ESTABLISHED.
    fn settle(
        &mut self,
        scope: &SettleScope,
        now_ns: u64,
        due: Vec<(&RingScope, u32, Slot)>,
        still: &mut HashSet<u32>,
    ) -> Result<(), MapsError> {
        let previous: HashMap<u32, u32> = due.iter().map(|(_, at, slot)| (*at, slot.previous())).collect();
        let former = |at: u32| previous.get(&at).copied();
        let shared = PassInputs { rings: &self.rings, backends: &self.backends, scope, now_ns };
        let counts = [self.v4.count_seen(&shared, former)?, self.v6.count_seen(&shared, former)?];
        let mut room = [self.v4.room(), self.v6.room()];
        for (ring, at, slot) in due {
            let family = usize::from(ring.family == Family::V6);
            let need = counts[family].get(&at).copied().unwrap_or(0);
            if need > room[family] {
                self.census.rings.entry(ring.offset).or_default().without_room += 1;
                if slot.has(Slot::SETTLING) {
                    still.insert(at);
                    self.settling.entry(at).or_insert(Former::Anybody);
                }
                continue;
            }
            // A slot that was changed just now is looked at again in the next pass.
            if self.rings.compare_exchange(at, slot, slot.settling()).is_ok() {
                room[family] -= need;
                still.insert(at);
                match self.settling.entry(at).or_insert_with(|| match slot.has(Slot::SETTLING) {
                    true => Former::Anybody,
                    false => Former::These(Vec::new()),
                }) {
                    Former::These(owners) => owners.push(slot.previous()),
                    Former::Anybody => {}
                }
            }
        }
        Ok(())
    }

    /// Step 2, after a grace period: copies the SEEN entries of the settling slots to ESTABLISHED,
    /// after which the program no longer looks in SEEN for them.
    pub fn keep(&mut self, scope: &SettleScope, now_ns: u64) -> Result<(), MapsError> {
        let shared = PassInputs { rings: &self.rings, backends: &self.backends, scope, now_ns };
        let mut refused = Vec::new();
        self.v4.keep(&shared, &self.settling, &mut refused)?;
        self.v6.keep(&shared, &self.settling, &mut refused)?;
        let is_refused: BTreeSet<u32> = refused.into_iter().collect();
        for at in self.settling.keys().filter(|at| !is_refused.contains(at)) {
            update(&self.rings, *at, |slot| slot.clear(Slot::SETTLING).with(Slot::IN_ESTABLISHED));
            self.census.settled += 1;
        }
        for ring in &scope.rings {
            let count = is_refused.range(ring.offset..ring.offset.saturating_add(ring.len)).count() as u64;
            if count > 0 {
                self.census.rings.entry(ring.offset).or_default().without_room += count;
            }
        }
        self.settling.retain(|at, _| is_refused.contains(at));
        self.refused = is_refused;
        Ok(())
    }

    /// Step 3, after a grace period: removes the SEEN entries that `keep` has read; no program
    /// looks them up any more.
    pub fn forget(&mut self) -> Result<(), MapsError> {
        self.v4.forget(&self.refused)?;
        self.v6.forget(&self.refused)
    }

    /// Step 4: marks the slots whose owners are the same and which have or may have exceptions.
    /// Returns how many were marked.
    pub fn mark(&mut self, scope: &SettleScope) -> usize {
        self.collecting.clear();
        for ring in scope.rings.iter().filter(|ring| !ring.is_warming_up) {
            for (at, slot) in slots(&self.rings, ring).filter(|(_, slot)| slot.flags() != 0) {
                let marked = slot.with(Slot::TRACKED | Slot::COLLECTING).clear(Slot::WRITTEN | Slot::IN_TABLES);
                if slot.in_transition() || slot.has(Slot::SETTLING) {
                    // Marks left by an agent that ended in the middle of a pass.
                    if slot.has(Slot::COLLECTING | Slot::WRITTEN) {
                        update(&self.rings, at, |slot| unmarked(slot, Slot::IN_TABLES));
                    }
                } else if self.rings.compare_exchange(at, slot, marked).is_ok() {
                    self.collecting.insert(at, 0);
                }
            }
        }
        self.collecting.len()
    }

    /// Step 5, after a grace period: removes entries that are no longer needed, and counts the
    /// others.
    pub fn collect(&mut self, scope: &SettleScope, now_ns: u64) -> Result<(), MapsError> {
        let shared = PassInputs { rings: &self.rings, backends: &self.backends, scope, now_ns };
        self.v4.collect(&shared, &mut self.collecting, &mut self.census)?;
        self.v6.collect(&shared, &mut self.collecting, &mut self.census)
    }

    /// Step 6: settles slots without entries, unless an entry was written meanwhile.
    pub fn finish(&mut self, scope: &SettleScope) -> SettleCensus {
        for (at, left) in self.collecting.drain() {
            let Some(slot) = self.rings.slot(at) else { continue };
            let empty = Slot::new(slot.current(), slot.current(), Slot::TRACKED | Slot::COLLECTING);
            let is_free = left == 0
                && slot == empty
                && self.rings.compare_exchange(at, empty, Slot::settled(slot.current())).is_ok();
            if is_free {
                self.census.collected += 1;
            } else {
                update(&self.rings, at, |slot| unmarked(slot, left));
            }
        }
        for ring in &scope.rings {
            let counts = self.census.rings.entry(ring.offset).or_default();
            for (_, slot) in slots(&self.rings, ring).filter(|(_, slot)| !slot.is_settled()) {
                match slot.in_transition() {
                    true => counts.in_transition += 1,
                    false => counts.tracked += 1,
                }
            }
        }
        std::mem::take(&mut self.census)
    }
}

/// The slot without its collection marks, and with the flags `tables` of the tables that may hold
/// entries.
fn unmarked(slot: Slot, tables: u64) -> Slot {
    let slot = slot.clear(Slot::COLLECTING | Slot::WRITTEN).with(tables);
    if slot.in_transition() { slot } else { slot.with(Slot::TRACKED) }
}

/// Applies `change` to a slot, retrying if others change it meanwhile.
fn update(rings: &Rings, at: u32, change: impl Fn(Slot) -> Slot) {
    let Some(mut found) = rings.slot(at) else { return };
    loop {
        let next = change(found);
        if next == found {
            return;
        }
        match rings.compare_exchange(at, found, next) {
            Ok(()) => return,
            Err(other) => found = other,
        }
    }
}

fn slots<'a>(rings: &'a Rings, ring: &RingScope) -> impl Iterator<Item = (u32, Slot)> + use<'a> {
    let end = ring.offset.saturating_add(ring.len);
    (ring.offset..end).map_while(|at| Some((at, rings.slot(at)?)))
}
