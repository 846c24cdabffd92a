//! The entries of `BACKENDS`: those that are wanted, those that drain, those that are gone.

use std::collections::BTreeMap;

use lb_common::{
    backend::{self, Backend},
    flow::{Family, any_addr},
    limits::MAX_BACKENDS,
};

use super::{
    FlowUse, Image, Leaving, Plan, PlanError, Wanted, WantedBackend, WantedService, address, nanoseconds, snat, way,
};
use crate::{
    config::model::Mode,
    dataplane::arena::Numbers,
    state::{AdminState, BackendId, Health},
};

pub fn place(
    wanted: &Wanted,
    programmed: &Image,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let mut unclaimed: BTreeMap<u32, &Backend> = programmed
        .backends
        .iter()
        .filter(|(index, backend)| **index != 0 && **index < MAX_BACKENDS && backend.family != 0)
        .map(|(index, backend)| (*index, backend))
        .collect();
    let mut by_service: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (index, backend) in &unclaimed {
        by_service.entry(backend.service).or_default().push(*index);
    }

    // Made only when needed: it looks at every slot, and a change of health needs no new index.
    let mut numbers: Option<Numbers> = None;
    let mut blocks = snat::Blocks::of(programmed);
    let mut placed = Vec::new();
    for service in &wanted.services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        for wanted in &service.backends {
            let name = BackendId { service: service.name.clone(), address: wanted.address };
            let before = by_service.get(&id).into_iter().flatten().find_map(|index| {
                let backend = unclaimed.get(index)?;
                is_same(backend, service, wanted).then_some((*index, **backend))
            });
            let index = match before {
                Some((index, _)) => index,
                None => numbers
                    .get_or_insert_with(|| Numbers::backends(programmed, &in_use.backends))
                    .allocate()
                    .ok_or_else(|| PlanError::Backends { backend: name.clone() })?,
            };
            unclaimed.remove(&index);
            plan.backends.insert(name, index);
            placed.push((index, id, service, wanted, before.map(|(_, backend)| backend)));
        }
    }
    // Those that drain keep the SNAT addresses that their flows use; the wanted ones choose among the rest.
    for (index, backend) in unclaimed {
        let timeout = plan.services.iter().find(|(_, id)| **id == backend.service).and_then(|(name, _)| {
            let service = wanted.services.iter().find(|service| service.name == *name)?;
            Some(service.drain_timeout)
        });
        let entry = leave(index, backend, timeout.map(nanoseconds), in_use, now_ns, plan);
        if entry.family != 0 {
            blocks.keep(programmed, &entry);
        }
        plan.target.backends.insert(index, entry);
    }
    for (index, id, service, wanted, before) in placed {
        let (snat_first, snat_count) = blocks.place(&wanted.snat, before.as_ref()).ok_or_else(|| PlanError::Snat {
            backend: BackendId { service: service.name.clone(), address: wanted.address },
        })?;
        let generation = match &before {
            Some(before) => before.generation,
            None => programmed.backends.get(&index).map_or(0, |free| free.generation).wrapping_add(1).max(1),
        };
        let entry = entry(service, wanted, before.as_ref(), now_ns, plan);
        let entry = Backend { generation, service: id, snat_first, snat_count, ..entry };
        plan.target.backends.insert(index, entry);
    }
    // What is free stays as it is: its generation counts on.
    for (index, backend) in &programmed.backends {
        if *index != 0 && !plan.target.backends.contains_key(index) && backend.generation != 0 {
            plan.target.backends.insert(*index, free(backend));
        }
    }
    plan.target.snat_addresses = blocks.into_addresses();
    Ok(())
}

/// Whether the entry is that of the wanted backend. Another mode, or another rule for the source, makes another backend of it; under another rule
/// the flows of the old one go on as they began.
pub fn is_same(backend: &Backend, service: &WantedService, wanted: &WantedBackend) -> bool {
    address(backend) == Some(wanted.address)
        && backend.way == way(service.mode)
        && (backend.flags & Backend::FLAG_KEEP_SOURCE != 0) == keeps_source(service, wanted)
}

/// Whether its flows keep the client's address: by configuration, or because it is on this node, where a packet from the node's own address dies in the
/// stack. Its answers are recognised by their source then.
fn keeps_source(service: &WantedService, wanted: &WantedBackend) -> bool {
    service.keeps_source || (wanted.is_local && service.mode == Mode::Nat)
}

fn entry(
    service: &WantedService,
    wanted: &WantedBackend,
    before: Option<&Backend>,
    now_ns: u64,
    plan: &mut Plan,
) -> Backend {
    let timeout_ns = nanoseconds(service.drain_timeout);
    let mut draining_since_ns = 0;
    let (admin, is_serving) = match wanted.admin {
        AdminState::Active => (backend::ADMIN_ACTIVE, true),
        AdminState::Disabled => (backend::ADMIN_DISABLED, false),
        AdminState::Draining => {
            draining_since_ns = before.and_then(|before| drains_since(before, now_ns)).unwrap_or(now_ns);
            let until_ns = draining_since_ns.saturating_add(timeout_ns);
            if now_ns < until_ns {
                plan.ends(until_ns);
            }
            (backend::ADMIN_DRAINING, now_ns < until_ns)
        }
    };
    let mut flags = 0;
    for (is_set, flag) in [
        (is_serving, Backend::FLAG_SERVING),
        (wanted.is_local, Backend::FLAG_LOCAL),
        (keeps_source(service, wanted), Backend::FLAG_KEEP_SOURCE),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    Backend {
        address: any_addr(wanted.address.ip()),
        port_be: wanted.address.port().to_be(),
        family: Family::of(&wanted.address.ip()).number(),
        way: way(service.mode),
        flags,
        admin,
        health: match wanted.health {
            Health::Unknown => backend::HEALTH_UNKNOWN,
            Health::Up => backend::HEALTH_UP,
            Health::Down => backend::HEALTH_DOWN,
        },
        drain_timeout_ms: u32::try_from(service.drain_timeout.as_millis()).unwrap_or(u32::MAX),
        draining_since_ns,
        health_since_unix_ns: wanted.health_since_unix_ns,
        ..Backend::FREE
    }
}

/// The entry of a backend that is not declared: it drains, or it is gone. `timeout_ns` is that of its service, if that is still there.
fn leave(
    index: u32,
    before: &Backend,
    timeout_ns: Option<u64>,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Backend {
    let Some(address) = address(before).filter(|_| is_well_formed(before) && before.is_serving()) else {
        return free(before);
    };
    let timeout_ns = timeout_ns.unwrap_or(u64::from(before.drain_timeout_ms) * 1_000_000);
    let since_ns = drains_since(before, now_ns).unwrap_or(now_ns);
    let until_ns = since_ns.saturating_add(timeout_ns);
    let has_no_flow = before.way == backend::WAY_NAT
        && before.admin == backend::ADMIN_REMOVED
        && in_use.is_after(since_ns)
        && !in_use.busy.contains(&index);
    if now_ns >= until_ns || has_no_flow {
        return free(before);
    }
    plan.ends(until_ns);
    plan.leaving.push(Leaving { index, service: before.service, address, until_ns });
    Backend { admin: backend::ADMIN_REMOVED, draining_since_ns: since_ns, ..*before }
}

fn free(before: &Backend) -> Backend {
    Backend { generation: before.generation, ..Backend::FREE }
}

/// Since when it has drained already.
fn drains_since(before: &Backend, now_ns: u64) -> Option<u64> {
    let drains = [backend::ADMIN_DRAINING, backend::ADMIN_REMOVED].contains(&before.admin);
    (drains && before.draining_since_ns > 0 && before.draining_since_ns <= now_ns).then_some(before.draining_since_ns)
}

fn is_well_formed(backend: &Backend) -> bool {
    const KNOWN: u32 = Backend::FLAG_SERVING | Backend::FLAG_LOCAL | Backend::FLAG_KEEP_SOURCE;
    [backend::WAY_NAT, backend::WAY_DSR_L2].contains(&backend.way)
        && (backend::ADMIN_ACTIVE..=backend::ADMIN_REMOVED).contains(&backend.admin)
        && backend.flags & !KNOWN == 0
}
