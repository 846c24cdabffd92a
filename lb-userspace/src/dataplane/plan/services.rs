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

use super::{FlowUse, Image, Plan, PlanError, Wanted, WantedService, mode_number, nanoseconds};
use crate::{
    balance::Ring,
    dataplane::arena::{Numbers, Ranges, overlap},
    model::{Affinity, limits::Exceeded},
    state::BackendId,
};

/// The length of the ring of a VIP that is no longer declared: one rejecting slot, shared by all
/// such VIPs.
const REJECTING: u32 = 1;

pub fn plan_services(
    wanted: &Wanted,
    programmed: &Image,
    in_use: &FlowUse,
    now_ns: u64,
    memo: &mut Memo,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let leaving = leaving(wanted, programmed, in_use, now_ns, plan);
    let mut ranges = Ranges::of(programmed, wanted.limits.ring_slots);
    let mut kept = kept_ranges(wanted, programmed, plan);
    let mut stats = Stats::new(programmed, in_use, wanted.limits.service_stats());
    memo.retain(plan);
    for service in &wanted.services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        for (family, ring) in &service.rings {
            let indexes = indexes(service, ring, plan);
            let len = ring.declared().ring_size;
            let offset = match kept.remove(&(id, *family)) {
                Some(offset) => offset,
                None => ranges.allocate(len).map_err(|full| PlanError::Rings {
                    service: service.name.clone(),
                    len,
                    full,
                })?,
            };
            let vips: Vec<SocketAddr> = service
                .vips
                .iter()
                .filter(|vip| Family::of(vip) == *family)
                .map(|vip| SocketAddr::new(*vip, service.port))
                .collect();
            let is_running =
                programmed.services.values().any(|before| (before.ring_offset, before.ring_len) == (offset, len));
            let before = programmed.rings.get(&offset).filter(|_| is_running);
            let change = RingChange::of(service, id, plan, memo);
            let slots = memo.slots((id, *family), ring, indexes, change, before);
            plan.target.rings.insert(offset, slots);
            for vip in vips {
                let stats = stats.assign(vip, programmed).map_err(|full| PlanError::Stats {
                    service: service.name.clone(),
                    vip,
                    full,
                })?;
                let entry = Service {
                    ring_offset: offset,
                    ring_len: len,
                    id,
                    stats,
                    flags: match service.affinity {
                        Affinity::None => 0,
                        Affinity::ClientIp => Service::FLAG_CLIENT_AFFINITY,
                    },
                    mode: mode_number(service.mode),
                    reserved: [0; 3],
                    draining_since_ns: 0,
                };
                plan.target.services.insert(vip, entry);
            }
        }
    }
    if leaving.is_empty() {
        return Ok(());
    }
    let offset = match kept_rejecting(wanted, programmed, plan) {
        Some(offset) => offset,
        None => {
            let service = "(those that left)".to_owned();
            ranges.allocate(REJECTING).map_err(|full| PlanError::Rings { service, len: REJECTING, full })?
        }
    };
    plan.target.rings.insert(offset, [Slot::settled(REJECT); REJECTING as usize].into());
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
    Ok(())
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
    fn of(service: &WantedService, id: u32, plan: &Plan, memo: &Memo) -> Self {
        if !service.mode.is_dsr() {
            return RingChange::AtOnce;
        }
        if memo.warming_up.contains(&service.name) {
            return RingChange::Begins;
        }
        let keep = plan
            .target
            .backends
            .iter()
            .filter(|(index, backend)| backend.service == id && backend.family != 0 && !plan.over.contains(index));
        RingChange::Transition(keep.map(|(index, _)| *index).collect())
    }

    /// The next value of a slot of a running ring whose owner becomes `owner`.
    fn next(&self, before: Slot, owner: u32) -> Slot {
        match self {
            RingChange::AtOnce => Slot::settled(owner),
            RingChange::Begins => Slot::new(owner, owner, before.flags() | Slot::TRACKED),
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

/// The last decided slots of each ring, and the inputs of the decision.
#[derive(Default, Debug)]
pub struct Memo {
    rings: BTreeMap<(u32, Family), Decided>,
    /// The names of services that have started and whose backends do not all have a verdict yet.
    pub warming_up: BTreeSet<String>,
}

#[derive(Debug)]
struct Decided {
    ring: Arc<Ring>,
    indexes: Vec<Option<u32>>,
    change: RingChange,
    slots: Arc<[Slot]>,
}

impl Memo {
    /// The slots of a ring. `indexes` has the index of each declared backend, `None` if it is not
    /// eligible. `before` is the current slots, if a service uses them.
    fn slots(
        &mut self,
        key: (u32, Family),
        ring: &Arc<Ring>,
        indexes: Vec<Option<u32>>,
        change: RingChange,
        before: Option<&Arc<[Slot]>>,
    ) -> Arc<[Slot]> {
        if let (Some(decided), Some(before)) = (self.rings.get(&key), before)
            && Arc::ptr_eq(&decided.slots, before)
            && Arc::ptr_eq(&decided.ring, ring)
            && decided.indexes == indexes
            && decided.change == change
        {
            return before.clone();
        }
        let owners = owners(ring, &indexes);
        let slots: Arc<[Slot]> = match before {
            Some(before) => before.iter().zip(owners).map(|(slot, owner)| change.next(*slot, owner)).collect(),
            None => owners.map(|owner| change.first(owner)).collect(),
        };
        self.rings.insert(key, Decided { ring: ring.clone(), indexes, change, slots: slots.clone() });
        slots
    }

    /// Forgets the rings of services that are no longer wanted.
    fn retain(&mut self, plan: &Plan) {
        self.rings.retain(|(id, _), _| plan.services.values().any(|wanted| wanted == id));
    }
}

/// The index of each declared backend; `None` if it is not eligible.
fn indexes(service: &WantedService, ring: &Ring, plan: &Plan) -> Vec<Option<u32>> {
    let index = |address: &SocketAddr| {
        let at = service.backends.binary_search_by_key(address, |backend| backend.address).ok()?;
        let backend = service.backends.get(at).filter(|backend| backend.is_eligible)?;
        let id = BackendId { service: service.name.clone(), address: backend.address };
        plan.backends.get(&id).copied()
    };
    ring.declared().backends.iter().map(|(address, _)| index(address)).collect()
}

/// The owner of each slot, as an index of `BACKENDS`.
fn owners(ring: &Ring, indexes: &[Option<u32>]) -> impl Iterator<Item = u32> {
    let is_eligible: Vec<bool> = indexes.iter().map(Option::is_some).collect();
    let index =
        |owner: Option<u32>| owner.and_then(|owner| indexes.get(owner as usize).copied().flatten()).unwrap_or(REJECT);
    ring.owners(&is_eligible).into_iter().map(index)
}

/// The ranges that wanted services keep, by service id and family. A service whose mode or ring
/// size changes gets a fresh range, so that ring and mode change in one write. Two services that
/// share a range, which only manual edits can cause, both get a fresh one.
fn kept_ranges(wanted: &Wanted, programmed: &Image, plan: &Plan) -> BTreeMap<(u32, Family), u32> {
    let mut kept: BTreeMap<(u32, Family), (u32, u32)> = BTreeMap::new();
    for service in &wanted.services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        for vip in &service.vips {
            let family = Family::of(vip);
            let Some(ring) = service.rings.get(&family) else { continue };
            let Some(before) = programmed.services.get(&SocketAddr::new(*vip, service.port)) else { continue };
            let is_right = before.id == id
                && before.mode == mode_number(service.mode)
                && before.ring_len == ring.declared().ring_size
                && before.draining_since_ns == 0
                && is_whole(wanted, programmed, before);
            if is_right {
                kept.entry((id, family)).or_insert((before.ring_offset, before.ring_len));
            }
        }
    }
    let is_alone = |one: &(u32, Family), range: (u32, u32)| {
        kept.iter().all(|(other, taken)| other == one || !overlap(range, *taken))
    };
    kept.iter().filter(|(one, range)| is_alone(one, **range)).map(|(one, (offset, _))| (*one, *offset)).collect()
}

fn kept_rejecting(wanted: &Wanted, programmed: &Image, plan: &Plan) -> Option<u32> {
    programmed
        .services
        .values()
        .filter(|service| service.ring_len == REJECTING && is_whole(wanted, programmed, service))
        .map(|service| service.ring_offset)
        .find(|offset| {
            plan.target.rings.iter().all(|(other, slots)| !overlap((*offset, REJECTING), (*other, slots.len() as u32)))
        })
}

/// Whether all slots of the service are in the arena and were read.
fn is_whole(wanted: &Wanted, programmed: &Image, service: &Service) -> bool {
    service.ring_offset.checked_add(service.ring_len).is_some_and(|end| end <= wanted.limits.ring_slots)
        && programmed.rings.get(&service.ring_offset).is_some_and(|slots| slots.len() == service.ring_len as usize)
}

/// The programmed VIPs that are no longer wanted but let their flows end, and since when. New
/// connections to them are reset.
fn leaving(
    wanted: &Wanted,
    programmed: &Image,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Vec<(SocketAddr, Service, u64)> {
    let wanted_vips: BTreeSet<SocketAddr> = wanted
        .services
        .iter()
        .flat_map(|service| service.vips.iter().map(|vip| SocketAddr::new(*vip, service.port)))
        .collect();
    let mut leaving = Vec::new();
    for (vip, before) in programmed.services.iter().filter(|(vip, _)| !wanted_vips.contains(vip)) {
        // In DSR mode there are no flow entries by which a flow could continue.
        if before.mode != MODE_NAT {
            continue;
        }
        let since_ns = match before.draining_since_ns {
            since_ns @ 1.. if since_ns <= now_ns => since_ns,
            _ => now_ns,
        };
        let service = wanted.services.iter().find(|service| plan.services.get(&service.name) == Some(&before.id));
        let until_ns = match service {
            Some(service) => Some(since_ns.saturating_add(nanoseconds(service.drain_timeout))),
            // The service is gone too: as long as its backends drain.
            None => plan.leaving.iter().filter(|one| one.service == before.id).map(|one| one.until_ns).max(),
        };
        let has_no_flow =
            before.draining_since_ns > 0 && in_use.is_after(since_ns) && !in_use.busy_vips.contains(&before.stats);
        if let Some(until_ns) = until_ns.filter(|until_ns| now_ns < *until_ns && !has_no_flow) {
            plan.ends(until_ns);
            leaving.push((*vip, *before, since_ns));
        }
    }
    leaving
}

/// Assigns counters: a VIP keeps the one it has, or gets a free one.
struct Stats {
    numbers: Numbers,
    /// The number of entries of `SERVICE_STATS`.
    len: u32,
    given: BTreeSet<u32>,
}

impl Stats {
    fn new(programmed: &Image, in_use: &FlowUse, len: u32) -> Self {
        Self { numbers: Numbers::service_stats(programmed, &in_use.vips, len), len, given: BTreeSet::new() }
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
