//! What a pass does with the exceptions of one address family.

use std::collections::{BTreeSet, HashMap};

use aya::{
    Pod,
    maps::{Array, MapData, MapError},
};
use lb_common::{
    backend::Backend,
    exception::{EXCEPTION_CLOSING, EXCEPTION_KEPT, Exception},
    flow::{Addr, Family, Flow, ip_addr},
    limits::map,
    nat::NatTimeouts,
    slot::Slot,
};

use super::{
    census::SettleCensus,
    judge::{EntryPlace, Over, is_idle, is_void, over},
    scope::SettleScope,
};
use crate::dataplane::{
    maps::{MapsError, unread},
    rings::Rings,
    tables::{
        Insertion,
        dsr::{DsrTables, ExceptionKind},
    },
};

/// The backends whose SEEN entries are kept when a slot settles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Former {
    /// The slot's previous owners.
    These(Vec<u32>),
    /// The previous owners are not known, because the slot was settling when another agent ended:
    /// any backend but the current owner.
    Anybody,
}

impl Former {
    pub fn has(&self, backend: u32, current: u32) -> bool {
        match self {
            Former::These(owners) => owners.contains(&backend),
            Former::Anybody => backend != current,
        }
    }
}

/// What both families share in a pass.
pub struct PassInputs<'a> {
    pub rings: &'a Rings,
    pub backends: &'a Array<MapData, Backend>,
    pub scope: &'a SettleScope,
    pub now_ns: u64,
}

impl PassInputs<'_> {
    fn timeouts(&self) -> &NatTimeouts {
        &self.scope.timeouts
    }

    /// Reads the map each time, because the owner of the maps may have just added the backend.
    pub fn backend(&self, index: u32) -> Result<Option<Backend>, MapsError> {
        match self.backends.get(&index, 0) {
            Ok(backend) => Ok(Some(backend)),
            Err(MapError::OutOfBounds { .. } | MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(unread(map::BACKENDS)(error)),
        }
    }

    /// Like `backend`, but cached in `known`, for many entries that name few backends.
    fn backend_once(
        &self,
        known: &mut HashMap<u32, Option<Backend>>,
        index: u32,
    ) -> Result<Option<Backend>, MapsError> {
        if let Some(backend) = known.get(&index) {
            return Ok(*backend);
        }
        let backend = self.backend(index)?;
        known.insert(index, backend);
        Ok(backend)
    }
}

/// The tables of a family, and the state that a pass keeps between its steps.
pub struct FamilyPass<A> {
    tables: DsrTables<A>,
    /// The SEEN entries that `keep` read for settling slots.
    scanned: Vec<(Flow<A>, Exception)>,
    /// Number of entries in ESTABLISHED as of the last count.
    pub established: u64,
}

impl<A: Addr> FamilyPass<A>
where
    Flow<A>: Pod,
{
    pub const fn new(tables: DsrTables<A>) -> Self {
        Self { tables, scanned: Vec::new(), established: 0 }
    }

    /// How many more entries ESTABLISHED has room for.
    pub fn room(&self) -> u64 {
        u64::from(self.tables.established.max_entries).saturating_sub(self.established)
    }

    /// For each slot, how many flows would be kept if it settled; `former` maps a slot to the
    /// previous owner whose flows count.
    pub fn count_seen(
        &self,
        shared: &PassInputs<'_>,
        former: impl Fn(u32) -> Option<u32>,
    ) -> Result<HashMap<u32, u64>, MapsError> {
        let mut counts = HashMap::new();
        self.tables.seen.scan(|_, entry| {
            let is_kept = former(entry.slot) == Some(entry.backend)
                && !is_idle(ExceptionKind::Seen, &entry, shared.now_ns, shared.timeouts());
            if is_kept {
                *counts.entry(entry.slot).or_default() += 1;
            }
        })?;
        Ok(counts)
    }

    /// Copies the SEEN entries of settling slots to ESTABLISHED. Slots whose flows do not fit are
    /// added to `refused`.
    pub fn keep(
        &mut self,
        shared: &PassInputs<'_>,
        settling: &HashMap<u32, Former>,
        refused: &mut Vec<u32>,
    ) -> Result<(), MapsError> {
        let mut scanned = Vec::new();
        self.tables.seen.scan(|flow, entry| {
            if settling.contains_key(&entry.slot) {
                scanned.push((*flow, entry));
            }
        })?;
        let mut known = HashMap::new();
        for (flow, entry) in &scanned {
            let Some(slot) = shared.rings.slot(entry.slot) else { continue };
            let is_former = settling.get(&entry.slot).is_some_and(|former| former.has(entry.backend, slot.current()));
            let backend = shared.backend_once(&mut known, entry.backend)?;
            let is_over = is_void(entry, backend.as_ref())
                || is_idle(ExceptionKind::Seen, entry, shared.now_ns, shared.timeouts());
            if is_former && !is_over && self.keep_one(flow, entry)? == Insertion::Full {
                refused.push(entry.slot);
            }
        }
        self.scanned = scanned;
        Ok(())
    }

    fn keep_one(&mut self, flow: &Flow<A>, seen: &Exception) -> Result<Insertion, MapsError> {
        let kept = Exception { flags: seen.flags & EXCEPTION_CLOSING | EXCEPTION_KEPT, ..*seen };
        let put = self.tables.established.put(flow, &kept)?;
        // A SYN of the same flow removes the flow's SEEN entry first, then its ESTABLISHED entry.
        // If the SEEN entry is gone, our insertion may have come after the second removal, so undo
        // it.
        if put == Insertion::Done
            && self.tables.seen.find(flow)?.is_none()
            && self.tables.established.find(flow)?.is_some_and(|found| is_same(&found, &kept))
        {
            self.tables.established.take(flow)?;
        }
        self.established += u64::from(put == Insertion::Done);
        Ok(put)
    }

    /// Removes the SEEN entries that `keep` has read, except those of slots in `refused`. An entry
    /// that the program has rewritten since then is put back.
    pub fn forget(&mut self, refused: &BTreeSet<u32>) -> Result<(), MapsError> {
        for (flow, entry) in std::mem::take(&mut self.scanned) {
            if refused.contains(&entry.slot) {
                continue;
            }
            if let Some(taken) = self.tables.seen.take(&flow)?
                && !is_same(&taken, &entry)
            {
                self.tables.seen.put(&flow, &taken)?;
            }
        }
        Ok(())
    }

    /// Removes entries that are over, and counts the rest. Sets in `left` the flags of the tables
    /// in which each collected slot still has entries.
    pub fn collect(
        &mut self,
        shared: &PassInputs<'_>,
        left: &mut HashMap<u32, u64>,
        census: &mut SettleCensus,
    ) -> Result<(), MapsError> {
        let mut known = HashMap::new();
        // Flows move from half-open to established; scanning in this order misses no flow that
        // moves during the scan.
        for kind in ExceptionKind::ALL {
            let mut entries = Vec::new();
            self.tables.of(kind).scan(|flow, entry| entries.push((*flow, entry)))?;
            let mut stay = 0;
            for (flow, entry) in &entries {
                let vip = SocketKey::of(self.tables.family, flow);
                let place = position(shared, left, &vip, entry.slot);
                let backend = shared.backend_once(&mut known, entry.backend)?;
                let why = over(kind, entry, place, backend.as_ref(), shared.now_ns, shared.timeouts());
                let is_gone = match why {
                    None => false,
                    Some(why) => self.remove(kind, shared, flow, entry, why)?,
                };
                if is_gone {
                    census.removed += 1;
                    continue;
                }
                stay += 1;
                if let Some(left) = left.get_mut(&entry.slot) {
                    *left |= kind.flag();
                }
                census.backends.entry(entry.backend).or_default().add(kind);
                if let Some(vip) = shared.scope.vips.get(&vip.0) {
                    census.vips.entry(vip.stats).or_default().add(kind);
                }
            }
            census.tables.push(self.tables.of(kind).fill(stay));
            if kind == ExceptionKind::Established {
                self.established = stay;
            }
        }
        Ok(())
    }

    /// Removes an entry unless the reason for its removal no longer holds; returns whether it is
    /// gone.
    fn remove(
        &mut self,
        kind: ExceptionKind,
        shared: &PassInputs<'_>,
        flow: &Flow<A>,
        entry: &Exception,
        why: Over,
    ) -> Result<bool, MapsError> {
        // The cached backend may be older than the entry.
        if why == Over::Void && !is_void(entry, shared.backend(entry.backend)?.as_ref()) {
            return Ok(false);
        }
        // While the entry is taken out and put back, packets of its flow would miss it. So leave it
        // in place if a packet has refreshed it since the scan.
        if why == Over::Idle
            && let Some(now) = self.tables.of_mut(kind).find(flow)?
            && !is_idle(kind, &now, shared.now_ns, shared.timeouts())
        {
            return Ok(false);
        }
        let Some(taken) = self.tables.of_mut(kind).take(flow)? else { return Ok(true) };
        let is_still_over = is_same(&taken, entry)
            && match why {
                Over::Stray | Over::Void => true,
                Over::Idle => is_idle(kind, &taken, shared.now_ns, shared.timeouts()),
                // Once the owners differ again, a flow without an entry goes to the previous owner.
                Over::Agrees => shared.rings.slot(entry.slot).is_some_and(|slot| !slot.in_transition()),
            };
        if is_still_over {
            return Ok(true);
        }
        // If a newer entry exists by now, it stays.
        Ok(self.tables.of_mut(kind).put(flow, &taken)? == Insertion::Full)
    }
}

/// The destination VIP and port of a flow.
struct SocketKey(std::net::SocketAddr);

impl SocketKey {
    fn of<A: Addr>(family: Family, flow: &Flow<A>) -> Self {
        Self(std::net::SocketAddr::new(ip_addr(family, flow.dst.to_any()), u16::from_be(flow.dst_port_be)))
    }
}

fn position(shared: &PassInputs<'_>, collected: &HashMap<u32, u64>, vip: &SocketKey, slot: u32) -> EntryPlace {
    let scope = shared.scope.vips.get(&vip.0);
    let word: Option<Slot> = scope.filter(|vip| vip.has(slot)).and_then(|_| shared.rings.slot(slot));
    let is_held = shared.scope.holds && scope.is_none();
    EntryPlace { slot: word, is_collected: collected.contains_key(&slot), is_held }
}

/// Whether both entries record the same assignment of the flow; only times and flags may differ.
fn is_same(a: &Exception, b: &Exception) -> bool {
    (a.backend, a.generation, a.slot, a.sequence) == (b.backend, b.generation, b.slot, b.sequence)
}
