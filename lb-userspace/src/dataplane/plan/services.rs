//! Plans the entries of `SERVICES_*` and their rings: for wanted services, and for services that
//! are no longer declared but let their flows end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    flow::Family,
    service::{MODE_NAT, Service},
    slot::{REJECT, Slot},
};

use super::{
    backends::Placed,
    entry::{mode_number, nanoseconds},
    flow_use::FlowUse,
    planned::{Misfit, Plan, PlanError},
    wanted::WantedService,
};
use crate::dataplane::image::{Image, Slots, Write};
use crate::{
    balance::Ring,
    dataplane::{
        arena::{Numbers, Ranges, overlap},
        settle::clock::deciseconds,
    },
    model::{Affinity, Limits, limits::Exceeded},
    state::ServiceName,
};

/// The length of the ring of a VIP that is no longer declared: one rejecting slot, shared by all
/// such VIPs.
const REJECTING: u32 = 1;

/// The places in the maps that rings and counters may get.
pub struct Room {
    ranges: Ranges,
    kept: BTreeMap<(u32, Family), u32>,
    stats: Stats,
}

impl Room {
    /// All free places, and for each service the places that it already has.
    pub fn of(
        services: &[Arc<WantedService>],
        programmed: &Image,
        in_use: &FlowUse,
        plan: &Plan,
        limits: &Limits,
    ) -> Self {
        let numbers = Numbers::service_stats(programmed, &in_use.vips, limits.service_stats());
        Self {
            ranges: Ranges::of(programmed, limits.ring_slots),
            kept: kept_ranges(services, programmed, plan, limits),
            stats: Stats::new(numbers, limits),
        }
    }

    /// Only the places that each service already has; `None` if a service needs a new range for a
    /// ring.
    pub fn kept(services: &[Arc<WantedService>], programmed: &Image, plan: &Plan, limits: &Limits) -> Option<Self> {
        let kept = kept_ranges(services, programmed, plan, limits);
        let rings: usize = services.iter().map(|service| service.rings.len()).sum();
        (kept.len() == rings).then(|| Self { ranges: Ranges::none(), kept, stats: Stats::new(Numbers::none(), limits) })
    }
}

/// What entries of services and their rings are planned from.
pub struct Inputs<'a> {
    pub services: &'a [Arc<WantedService>],
    pub programmed: &'a Image,
    pub slots: &'a dyn Slots,
    /// The indexes of each service's backends.
    pub placed: &'a Placed,
    pub limits: &'a Limits,
    pub now_ns: u64,
}

/// Plans the entries and rings of these services, and returns the writes of the slots.
pub fn plan_services(inputs: &Inputs<'_>, room: &mut Room, memo: &mut Memo, plan: &mut Plan) -> Vec<Write> {
    let Inputs { programmed, placed, .. } = inputs;
    let Room { ranges, kept, stats } = room;
    let mut writes = Vec::new();
    let running = programmed.ranges();
    let flows = with_flows(plan);
    for service in inputs.services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        if plan.misfits.contains_key(&service.name) {
            continue;
        }
        let of_service = placed.get(&id).map(Vec::as_slice).unwrap_or_default();
        let places = match ServicePlaces::of(service, id, programmed, ranges, kept, stats) {
            Ok(places) => places,
            Err(misfit) => {
                plan.leave_out(&service.name, misfit);
                continue;
            }
        };
        for (family, ring) in &service.rings {
            let Some(offset) = places.offsets.get(family).copied() else { continue };
            let len = ring.declared().ring_size;
            let decided = Decided {
                ring: ring.clone(),
                offset,
                indexes: indexes(service, ring, of_service),
                change: RingChange::of(service, flows.get(&id), memo),
            };
            let is_running = running.contains(&(offset, len));
            writes.extend(memo.decide((id, *family), decided, inputs.slots, is_running, inputs.now_ns));
            for (vip, stats) in places.stats.iter().filter(|(vip, _)| Family::of(&vip.ip()) == *family) {
                let entry = Service {
                    ring_offset: offset,
                    ring_len: len,
                    id,
                    stats: *stats,
                    flags: match service.affinity {
                        Affinity::None => 0,
                        Affinity::ClientIp => Service::FLAG_CLIENT_AFFINITY,
                    },
                    mode: mode_number(service.mode),
                    reserved: [0; 3],
                    draining_since_ns: 0,
                };
                plan.target.services.insert(*vip, entry);
            }
        }
    }
    writes
}

/// Where a service's rings and counters are.
struct ServicePlaces {
    offsets: BTreeMap<Family, u32>,
    stats: Vec<(SocketAddr, u32)>,
}

impl ServicePlaces {
    /// The service's present places, and free ones where it has none. If there is no room for all,
    /// those that were allocated are given back.
    fn of(
        service: &WantedService,
        id: u32,
        programmed: &Image,
        ranges: &mut Ranges,
        kept: &mut BTreeMap<(u32, Family), u32>,
        stats: &mut Stats,
    ) -> Result<Self, Misfit> {
        let mut places = Self { offsets: BTreeMap::new(), stats: Vec::new() };
        let (mut allocated, mark) = (Vec::new(), stats.numbers.mark());
        let found = places.find(service, id, programmed, (&mut *ranges, kept, &mut *stats), &mut allocated);
        if let Err(misfit) = found {
            allocated.into_iter().for_each(|offset| ranges.give_back(offset));
            places.stats.iter().for_each(|(_, index)| stats.give_back(*index));
            stats.numbers.back_to(Some(mark));
            return Err(misfit);
        }
        Ok(places)
    }

    fn find(
        &mut self,
        service: &WantedService,
        id: u32,
        programmed: &Image,
        (ranges, kept, stats): (&mut Ranges, &mut BTreeMap<(u32, Family), u32>, &mut Stats),
        allocated: &mut Vec<u32>,
    ) -> Result<(), Misfit> {
        for (family, ring) in &service.rings {
            let len = ring.declared().ring_size;
            let offset = match kept.remove(&(id, *family)) {
                Some(offset) => offset,
                None => {
                    let full = |full| Misfit::Rings { service: service.name.clone(), len, full };
                    let offset = ranges.allocate(len).map_err(full)?;
                    allocated.push(offset);
                    offset
                }
            };
            self.offsets.insert(*family, offset);
            for vip in service.vips.iter().filter(|vip| Family::of(vip) == *family) {
                let vip = SocketAddr::new(*vip, service.port);
                let full = |full| Misfit::Stats { service: service.name.clone(), vip, full };
                self.stats.push((vip, stats.assign(vip, programmed).map_err(full)?));
            }
        }
        Ok(())
    }
}

/// Plans the entries of VIPs that are no longer wanted; returns the writes of the slots. `leaving`
/// has each VIP, its programmed entry, and since when it has not been wanted.
pub fn plan_leaving(
    leaving: Vec<(SocketAddr, Service, u64)>,
    inputs: &Inputs<'_>,
    Room { mut ranges, mut stats, .. }: Room,
    plan: &mut Plan,
) -> Result<Vec<Write>, PlanError> {
    let Inputs { programmed, slots, now_ns, .. } = *inputs;
    let mut writes = Vec::new();
    if leaving.is_empty() {
        return Ok(writes);
    }
    let (offset, before) = match kept_rejecting(programmed, plan, inputs.limits) {
        Some(offset) => (offset, slots.range(offset, REJECTING)),
        None => {
            let service = ServiceName::of_file("(those that left)");
            let full = |full| Misfit::Rings { service, len: REJECTING, full };
            (ranges.allocate(REJECTING).map_err(full)?, Vec::new())
        }
    };
    let to = Slot::settled(REJECT);
    match before.first() {
        Some(from) if *from == to => {}
        Some(from) => writes.push(Write::Slot { at: offset, from: *from, to, now_ds: deciseconds(now_ns) }),
        None => writes.push(Write::Ring { offset, slots: vec![to; REJECTING as usize] }),
    }
    for (vip, before, since_ns) in leaving {
        let Ok(stats) = stats.assign(vip, programmed) else { continue };
        let entry = Service {
            ring_offset: offset,
            ring_len: REJECTING,
            stats,
            reserved: [0; 3],
            draining_since_ns: since_ns,
            ..before
        };
        plan.target.services.insert(vip, entry);
    }
    Ok(writes)
}

/// The indexes that slots of these ranges name; `owners` gives the indexes of a slot.
pub fn named<const N: usize>(
    ranges: impl IntoIterator<Item = (u32, u32)>,
    slots: &dyn Slots,
    owners: impl Fn(Slot) -> [u32; N],
) -> BTreeSet<u32> {
    // A flag for each index: rings may have millions of slots, and few owners.
    let mut is_named: Vec<bool> = Vec::new();
    for (offset, len) in ranges {
        for owner in slots.range(offset, len).into_iter().flat_map(&owners) {
            let owner = owner as usize;
            if owner >= is_named.len() {
                is_named.resize(owner + 1, false);
            }
            if let Some(is_named) = is_named.get_mut(owner) {
                *is_named = true;
            }
        }
    }
    (0..).zip(is_named).filter(|(_, is_named)| *is_named).map(|(index, _)| index).collect()
}

/// The indexes of backends whose flows are not over, by the id of their service.
fn with_flows(plan: &Plan) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut flows: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (index, backend) in &plan.target.backends {
        if backend.family != 0 && !plan.over.contains(index) {
            flows.entry(backend.service).or_default().insert(*index);
        }
    }
    flows
}

/// How the slots of a ring change owner.
#[derive(Clone, PartialEq, Eq, Debug)]
enum RingChange {
    /// In `nat` mode every flow has an entry of its own, so a slot settles at once.
    AtOnce,
    /// A DSR service starts. Flows that began elsewhere, on another node or on this one before its
    /// boot, belong to the owner that the ring names once all backends have a verdict. Flows that
    /// begin here meanwhile get entries.
    Begins,
    /// In DSR mode flows have no entries: old flows stay with the previous owner if it is one of
    /// these backends, whose flows are not over.
    Transition(BTreeSet<u32>),
}

impl RingChange {
    fn of(service: &WantedService, with_flows: Option<&BTreeSet<u32>>, memo: &Memo) -> Self {
        if !service.mode.is_dsr() {
            return RingChange::AtOnce;
        }
        if memo.warming_up.contains(&service.name) {
            return RingChange::Begins;
        }
        RingChange::Transition(with_flows.cloned().unwrap_or_default())
    }

    /// The next value of a slot of a running ring whose owner becomes `owner`.
    fn next(&self, before: Slot, owner: u32) -> Slot {
        match self {
            RingChange::AtOnce => Slot::settled(owner),
            RingChange::Begins => Slot::new(owner, owner, before.flags() | Slot::TRACKED),
            // The fast path: most slots do not change.
            RingChange::Transition(_) if before == Slot::settled(owner) => before,
            RingChange::Transition(keep) => {
                let slot = before.changed(owner);
                match keep.contains(&slot.previous()) {
                    true => slot,
                    false => slot.without(slot.previous()),
                }
            }
        }
    }

    /// The value of a slot of a ring that is not in use yet.
    fn first(&self, owner: u32) -> Slot {
        match self {
            RingChange::Begins => Slot::new(owner, owner, Slot::TRACKED),
            RingChange::AtOnce | RingChange::Transition(_) => Slot::settled(owner),
        }
    }
}

/// The inputs from which the slots of each ring were decided last. The writes of the last plan have
/// been applied, so a ring with the same inputs has no slot to write.
#[derive(Clone, Default, Debug)]
pub struct Memo {
    rings: BTreeMap<(u32, Family), Decided>,
    /// The names of services that have started and whose backends do not all have a verdict yet.
    pub warming_up: BTreeSet<ServiceName>,
    /// The ring with which the next audit begins.
    next: Option<(u32, Family)>,
}

#[derive(Clone, Debug)]
struct Decided {
    ring: Arc<Ring>,
    offset: u32,
    /// The index of each declared backend; `None` if it is not eligible.
    indexes: Vec<Option<u32>>,
    change: RingChange,
}

impl PartialEq for Decided {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ring, &other.ring)
            && (self.offset, &self.indexes, &self.change) == (other.offset, &other.indexes, &other.change)
    }
}

impl Decided {
    fn len(&self) -> u32 {
        self.ring.declared().ring_size
    }

    /// The owner of each slot, as an index of `BACKENDS`.
    fn owners(&self) -> impl Iterator<Item = u32> {
        let is_eligible: Vec<bool> = self.indexes.iter().map(Option::is_some).collect();
        let index = |owner: Option<u32>| {
            owner.and_then(|owner| self.indexes.get(owner as usize).copied().flatten()).unwrap_or(REJECT)
        };
        self.ring.owners(is_eligible).map(index)
    }

    /// The slots that differ from the decision: position, present value, wanted value.
    fn differences(&self, slots: &dyn Slots) -> impl Iterator<Item = (u32, Slot, Slot)> {
        let before = slots.range(self.offset, self.len());
        let next = (self.offset..).zip(before.into_iter().zip(self.owners()));
        next.map(|(at, (slot, owner))| (at, slot, self.change.next(slot, owner))).filter(|(_, slot, next)| slot != next)
    }
}

impl Memo {
    /// The writes that a ring needs; `is_running` if a service uses its range already.
    fn decide(
        &mut self,
        key: (u32, Family),
        decided: Decided,
        slots: &dyn Slots,
        is_running: bool,
        now_ns: u64,
    ) -> Vec<Write> {
        if is_running && self.rings.get(&key) == Some(&decided) {
            return Vec::new();
        }
        let writes = if is_running {
            let now_ds = deciseconds(now_ns);
            decided.differences(slots).map(|(at, from, to)| Write::Slot { at, from, to, now_ds }).collect()
        } else {
            let slots = decided.owners().map(|owner| decided.change.first(owner)).collect();
            vec![Write::Ring { offset: decided.offset, slots }]
        };
        self.rings.insert(key, decided);
        writes
    }

    /// Forgets the rings of services that are no longer wanted.
    pub fn retain(&mut self, plan: &Plan) {
        let wanted: BTreeSet<u32> = plan.services.values().copied().collect();
        self.rings.retain(|(id, _), _| wanted.contains(id));
    }

    /// Forgets every decision: the slots may hold anything.
    pub fn forget(&mut self) {
        self.rings.clear();
    }

    /// The ranges of `programmed` whose slots may name any index. The slots of all other ranges
    /// name only backends that have an entry.
    pub(super) fn unknown(&self, programmed: &Image) -> BTreeSet<(u32, u32)> {
        let mut ranges = programmed.ranges();
        for decided in self.rings.values() {
            ranges.remove(&(decided.offset, decided.len()));
        }
        ranges
    }

    /// The number of slots of all rings.
    pub fn slots(&self) -> usize {
        self.rings.values().map(|decided| decided.len() as usize).sum()
    }

    /// Compares the next rings with their slots, and stops after the ring with which `budget` slots
    /// are reached. Forgets the rings that differ, so that the next plan corrects them.
    pub fn audit(&mut self, slots: &dyn Slots, budget: usize) -> Audit {
        let mut audit = Audit::default();
        let mut seen = 0;
        let begin = self.next.take();
        let keys: Vec<(u32, Family)> = match begin {
            Some(begin) => self.rings.range(begin..).chain(self.rings.range(..begin)).map(|(key, _)| *key).collect(),
            None => self.rings.keys().copied().collect(),
        };
        for key in keys {
            if seen >= budget {
                self.next = Some(key);
                break;
            }
            let Some(decided) = self.rings.get(&key) else { continue };
            seen += decided.len() as usize;
            let (mut differs, mut wrong) = (false, 0);
            for (_, slot, next) in decided.differences(slots) {
                differs = true;
                wrong += usize::from(slot.current() != next.current());
            }
            audit.wrong_owners += wrong;
            if differs {
                audit.rings += 1;
                self.rings.remove(&key);
            }
        }
        audit
    }
}

/// What an audit of slots has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Slots whose owner differs from the decided one.
    pub wrong_owners: usize,
    /// Rings of which some slot differs from the decision.
    pub rings: usize,
}

/// The index of each declared backend; `None` if it is not eligible. `placed` has the indexes of
/// the service's backends, in their order.
fn indexes(service: &WantedService, ring: &Ring, placed: &[u32]) -> Vec<Option<u32>> {
    let index = |address: &SocketAddr| {
        let at = service.backends.binary_search_by_key(address, |backend| backend.address).ok()?;
        service.backends.get(at).filter(|backend| backend.is_eligible)?;
        placed.get(at).copied()
    };
    ring.declared().backends.iter().map(|(address, _)| index(address)).collect()
}

/// The ranges that wanted services keep, by service id and family. A service whose mode or ring
/// size changes gets a fresh range, so that ring and mode change in one write. Two services that
/// share a range, which only manual edits can cause, both get a fresh one.
fn kept_ranges(
    services: &[Arc<WantedService>],
    programmed: &Image,
    plan: &Plan,
    limits: &Limits,
) -> BTreeMap<(u32, Family), u32> {
    let mut kept: BTreeMap<(u32, Family), (u32, u32)> = BTreeMap::new();
    for service in services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        for vip in &service.vips {
            let family = Family::of(vip);
            let Some(ring) = service.rings.get(&family) else { continue };
            let Some(before) = programmed.services.get(&SocketAddr::new(*vip, service.port)) else { continue };
            let is_right = before.id == id
                && before.mode == mode_number(service.mode)
                && before.ring_len == ring.declared().ring_size
                && before.draining_since_ns == 0
                && is_whole(before, limits);
            if is_right {
                kept.entry((id, family)).or_insert((before.ring_offset, before.ring_len));
            }
        }
    }
    // Sorted by offset, a range shares no slot with another if it begins where or after all earlier
    // ranges end, and ends where or before the next one begins.
    let mut sorted: Vec<((u32, u32), (u32, Family))> = kept.into_iter().map(|(one, range)| (range, one)).collect();
    sorted.sort_unstable();
    let mut alone = BTreeMap::new();
    let mut end_before = 0;
    for (at, ((offset, len), one)) in sorted.iter().enumerate() {
        let end = offset + len;
        let is_before_next = sorted.get(at + 1).is_none_or(|((next, _), _)| end <= *next);
        if end_before <= *offset && is_before_next {
            alone.insert(*one, *offset);
        }
        end_before = end_before.max(end);
    }
    alone
}

fn kept_rejecting(programmed: &Image, plan: &Plan, limits: &Limits) -> Option<u32> {
    let in_use = plan.target.ranges();
    programmed
        .services
        .values()
        .filter(|service| service.ring_len == REJECTING && is_whole(service, limits))
        .map(|service| service.ring_offset)
        .find(|offset| in_use.iter().all(|other| !overlap((*offset, REJECTING), *other)))
}

/// Whether all slots of the service are in the arena.
fn is_whole(service: &Service, limits: &Limits) -> bool {
    service.ring_offset.checked_add(service.ring_len).is_some_and(|end| end <= limits.ring_slots)
}

/// The programmed VIPs that are no longer wanted, but whose old flows go on; each with its entry,
/// and since when it has not been wanted. New connections to them are reset.
pub fn leaving(
    services: &[Arc<WantedService>],
    programmed: &Image,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Vec<(SocketAddr, Service, u64)> {
    let wanted_vips: BTreeSet<SocketAddr> = services.iter().flat_map(|service| service.served()).collect();
    let by_id = plan.by_id(services);
    let mut last_backends: BTreeMap<u32, u64> = BTreeMap::new();
    for one in &plan.leaving {
        let until_ns = last_backends.entry(one.service).or_default();
        *until_ns = one.until_ns.max(*until_ns);
    }
    let mut leaving = Vec::new();
    for (vip, before) in programmed.services.iter().filter(|(vip, _)| !wanted_vips.contains(vip)) {
        // In DSR mode there are no flow entries by which a flow could continue.
        if before.mode != MODE_NAT || plan.held.contains(&before.id) {
            continue;
        }
        let since_ns = match before.draining_since_ns {
            since_ns @ 1.. if since_ns <= now_ns => since_ns,
            _ => now_ns,
        };
        let until_ns = match by_id.get(&before.id) {
            Some(service) => Some(since_ns.saturating_add(nanoseconds(service.drain_timeout))),
            // The service is gone too: its VIPs stay as long as its backends drain.
            None => last_backends.get(&before.id).copied(),
        };
        let has_no_flow =
            before.draining_since_ns > 0 && in_use.is_after(since_ns) && !in_use.busy_vips.contains(&before.stats);
        if let Some(until_ns) = until_ns.filter(|until_ns| now_ns < *until_ns && !has_no_flow) {
            plan.ends(before.id, until_ns);
            leaving.push((*vip, *before, since_ns));
        }
    }
    leaving
}

/// Assigns counters: a VIP keeps the counter that it has, or gets a free one.
struct Stats {
    numbers: Numbers,
    /// The number of entries of `SERVICE_STATS`.
    len: u32,
    given: BTreeSet<u32>,
}

impl Stats {
    fn new(numbers: Numbers, limits: &Limits) -> Self {
        Self { numbers, len: limits.service_stats(), given: BTreeSet::new() }
    }

    fn give_back(&mut self, index: u32) {
        self.given.remove(&index);
    }

    fn assign(&mut self, vip: SocketAddr, programmed: &Image) -> Result<u32, Exceeded> {
        let before = programmed.services.get(&vip).map(|before| before.stats);
        let index = match before.filter(|index| *index < self.len && !self.given.contains(index)) {
            Some(index) => index,
            None => self.numbers.allocate()?,
        };
        self.given.insert(index);
        Ok(index)
    }
}
