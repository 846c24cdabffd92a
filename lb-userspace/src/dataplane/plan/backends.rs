//! Plans the entries of `BACKENDS`: wanted backends, draining ones, and those that are gone.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use lb_common::{
    backend::{self, Backend},
    flow::{Family, any_addr},
};

use super::{
    entry::{address, nanoseconds},
    flow_use::FlowUse,
    planned::{Leaving, Misfit, Plan},
    snat::Blocks,
    wanted::{WantedBackend, WantedService},
};
use crate::dataplane::image::Image;
use crate::{
    dataplane::arena::Numbers,
    model::{Limits, Mode, OnDead},
    state::{AdminState, BackendId, Health},
};

/// The indexes of each service's backends, in their order, by the service's id.
pub type Placed = BTreeMap<u32, Vec<u32>>;

/// Plans the backends of these services. `programmed` holds no entries of other services, unless
/// those are no longer wanted. `numbers` gives the indexes that new backends may get.
pub fn plan_backends(
    (services, programmed): (&[Arc<WantedService>], &Image),
    limits: &Limits,
    numbers: impl Fn() -> Numbers,
    mut blocks: Blocks,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Placed {
    let mut unclaimed: BTreeMap<u32, &Backend> = programmed
        .backends
        .iter()
        .filter(|(index, backend)| **index != 0 && **index < limits.backends && backend.family != 0)
        .map(|(index, backend)| (*index, backend))
        .collect();
    let mut by_service: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (index, backend) in &unclaimed {
        by_service.entry(backend.service).or_default().push(*index);
    }

    // Made only when needed: it may scan every slot, and a change of health needs no new index.
    let mut unused: Option<Numbers> = None;
    let mut placed = Vec::new();
    let mut indexes = Placed::new();
    'services: for service in services {
        let Some(id) = plan.services.get(&service.name).copied() else { continue };
        let (place, mark) = (placed.len(), unused.as_ref().map(Numbers::mark));
        for wanted in &service.backends {
            let name = BackendId { service: service.name.clone(), address: wanted.address };
            let before = by_service.get(&id).into_iter().flatten().find_map(|index| {
                let backend = unclaimed.get(index)?;
                is_same(backend, service, wanted).then_some((*index, **backend))
            });
            let index = match before {
                Some((index, _)) => index,
                None => match unused.get_or_insert_with(&numbers).allocate() {
                    Ok(index) => index,
                    Err(full) => {
                        // Give the indexes of this service back, so that other services may have
                        // them.
                        unused.as_mut().into_iter().for_each(|numbers| numbers.back_to(mark));
                        placed.truncate(place);
                        indexes.remove(&id);
                        plan.leave_out(&service.name, Misfit::Backends { backend: name, full });
                        continue 'services;
                    }
                },
            };
            unclaimed.remove(&index);
            plan.backends.insert(name, index);
            indexes.entry(id).or_default().push(index);
            placed.push((index, id, service, wanted, before.map(|(_, backend)| backend)));
        }
    }
    // Draining backends keep the SNAT addresses that their flows use; wanted backends choose from
    // the rest.
    let by_id = plan.by_id(services);
    for (index, backend) in unclaimed {
        let entry = match plan.held.contains(&backend.service) {
            true => *backend,
            false => leave(index, backend, by_id.get(&backend.service).copied(), in_use, now_ns, plan),
        };
        if entry.family != 0 {
            blocks.keep(programmed, &entry);
        }
        plan.target.backends.insert(index, entry);
    }
    for (index, id, service, wanted, before) in placed {
        let Some((snat_first, snat_count)) = blocks.assign(&wanted.snat, before.as_ref()) else {
            let backend = BackendId { service: service.name.clone(), address: wanted.address };
            plan.leave_out(&service.name, Misfit::Snat { backend });
            continue;
        };
        let generation = match &before {
            Some(before) => before.generation,
            None => programmed.backends.get(&index).map_or(0, |free| free.generation).wrapping_add(1).max(1),
        };
        let entry = entry((index, id), service, wanted, before.as_ref(), now_ns, plan);
        let entry = Backend { generation, service: id, snat_first, snat_count, ..entry };
        plan.target.backends.insert(index, entry);
    }
    // Free entries stay as they are, so that their generation keeps counting.
    for (index, backend) in &programmed.backends {
        if *index != 0 && !plan.target.backends.contains_key(index) && backend.generation != 0 {
            plan.target.backends.insert(*index, free(backend));
        }
    }
    plan.target.snat_addresses = blocks.into_addresses();
    indexes
}

/// Whether the entry is that of the wanted backend. Another mode, or another rule for the source
/// address, makes it a different backend; after a change of the source rule, the old backend's
/// flows go on as they began.
pub fn is_same(backend: &Backend, service: &WantedService, wanted: &WantedBackend) -> bool {
    address(backend) == Some(wanted.address)
        && is_way_of(backend.way, service.mode)
        && backend.keeps_source() == keeps_source(service, wanted)
}

/// Whether the backend's flows keep the client's address: by configuration, or because the backend
/// is on this node, where the network stack would drop a packet from the node's own address. The
/// backend's answers are then recognised by their source address.
fn keeps_source(service: &WantedService, wanted: &WantedBackend) -> bool {
    service.keeps_source || (wanted.is_local && service.mode == Mode::Nat)
}

/// Whether `way` belongs to the mode. Both IPIP ways do, so a backend stays the same when its
/// tunnel moves to an address of the other family.
pub const fn is_way_of(way: u8, mode: Mode) -> bool {
    match mode {
        Mode::Nat => way == backend::WAY_NAT,
        Mode::DsrL2 => way == backend::WAY_DSR_L2,
        Mode::DsrIpip => way == backend::WAY_IPIP_V4 || way == backend::WAY_IPIP_V6,
    }
}

const fn way(mode: Mode, tunnel: IpAddr) -> u8 {
    match (mode, tunnel) {
        (Mode::Nat, _) => backend::WAY_NAT,
        (Mode::DsrL2, _) => backend::WAY_DSR_L2,
        (Mode::DsrIpip, IpAddr::V4(_)) => backend::WAY_IPIP_V4,
        (Mode::DsrIpip, IpAddr::V6(_)) => backend::WAY_IPIP_V6,
    }
}

fn entry(
    (index, id): (u32, u32),
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
                plan.ends(id, until_ns);
            }
            (backend::ADMIN_DRAINING, now_ns < until_ns)
        }
    };
    let policy = end_of_flows(service);
    let is_dead = is_serving && is_dead(service, wanted);
    let mut flags = 0;
    if is_dead {
        flags |= policy;
    } else if admin == backend::ADMIN_DRAINING && !is_serving && policy != 0 {
        // For one settle time, the remaining flows are reset or dropped, as the service configures;
        // then they are forgotten.
        let ends_ns = draining_since_ns.saturating_add(timeout_ns).saturating_add(nanoseconds(service.settle_time));
        if now_ns < ends_ns {
            flags |= policy;
            plan.ends(id, ends_ns);
        }
    }
    if !is_serving && flags == 0 {
        plan.over.insert(index);
    }
    let tunnel = wanted.tunnel.filter(|_| service.mode == Mode::DsrIpip);
    let tunnel_to = tunnel.map_or(wanted.address.ip(), |tunnel| tunnel.to);
    for (is_set, flag) in [
        (is_serving && !is_dead, Backend::FLAG_SERVING),
        (wanted.is_local, Backend::FLAG_LOCAL),
        (keeps_source(service, wanted), Backend::FLAG_KEEP_SOURCE),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    Backend {
        address: any_addr(wanted.address.ip()),
        port_be: wanted.address.port().to_be(),
        family: Family::of(&wanted.address.ip()).number(),
        way: way(service.mode, tunnel_to),
        tunnel: if service.mode == Mode::DsrIpip { any_addr(tunnel_to) } else { Default::default() },
        tunnel_source: tunnel.and_then(|tunnel| tunnel.source).map(any_addr).unwrap_or_default(),
        flags,
        admin,
        health: match wanted.health {
            Health::Unknown => backend::HEALTH_UNKNOWN,
            Health::Up => backend::HEALTH_UP,
            Health::Down => backend::HEALTH_DOWN,
            Health::Dead => backend::HEALTH_DEAD,
        },
        drain_timeout_ms: service.drain_timeout.as_millis().try_into().unwrap_or(backend::Milliseconds::MAX),
        draining_since_ns,
        health_since_unix_ns: wanted.health_since_unix_ns,
        ..Backend::FREE
    }
}

/// The flags that make the program end the flows of a backend that does not serve; 0: the flows go
/// to the current owner of their slot.
const fn end_of_flows(service: &WantedService) -> u32 {
    match service.on_dead {
        OnDead::Next => 0,
        OnDead::Reset => Backend::FLAG_RESET,
        OnDead::Drop => Backend::FLAG_DROP,
    }
}

/// Whether the backend's flows are ended: it does not answer, while at least half of the service's
/// backends of its family are up. If most backends were silent, the fault would more likely be this
/// node's.
fn is_dead(service: &WantedService, wanted: &WantedBackend) -> bool {
    let keeps = service.mode == Mode::Nat && service.on_dead == OnDead::Next;
    let peers = || {
        let is_peer = |one: &&WantedBackend| one.address.is_ipv4() == wanted.address.is_ipv4();
        service.backends.iter().filter(is_peer).filter(|one| one.admin != AdminState::Disabled)
    };
    let up = peers().filter(|one| one.health == Health::Up).count();
    wanted.health == Health::Dead && !keeps && up * 2 >= peers().count()
}

/// The new entry of a backend that is no longer declared: draining, or gone. `service` is the
/// backend's service, if it still exists.
fn leave(
    index: u32,
    before: &Backend,
    service: Option<&WantedService>,
    in_use: &FlowUse,
    now_ns: u64,
    plan: &mut Plan,
) -> Backend {
    if before.admin == backend::ADMIN_GONE {
        return end(before, service, now_ns, plan);
    }
    let Some(address) = address(before).filter(|_| is_well_formed(before)) else { return free(before) };
    if service.is_some_and(|service| service.gone.contains(&address)) {
        return end(&Backend { draining_since_ns: now_ns, ..*before }, service, now_ns, plan);
    }
    if !before.is_serving() {
        return match before.health {
            // A dead backend that is no longer probed could not be seen to come back, so it counts
            // as gone.
            backend::HEALTH_DEAD => end(&Backend { draining_since_ns: now_ns, ..*before }, service, now_ns, plan),
            _ => free(before),
        };
    }
    let timeout_ns = service
        .map(|service| nanoseconds(service.drain_timeout))
        .unwrap_or(u64::from(before.drain_timeout_ms) * 1_000_000);
    let since_ns = drains_since(before, now_ns).unwrap_or(now_ns);
    let until_ns = since_ns.saturating_add(timeout_ns);
    let has_no_flow = before.way == backend::WAY_NAT
        && before.admin == backend::ADMIN_REMOVED
        && in_use.is_after(since_ns)
        && !in_use.busy.contains(&index);
    if has_no_flow {
        return free(before);
    }
    if now_ns >= until_ns {
        return end(&Backend { draining_since_ns: until_ns, ..*before }, service, now_ns, plan);
    }
    plan.ends(before.service, until_ns);
    plan.leaving.push(Leaving { index, service: before.service, address, until_ns });
    Backend { admin: backend::ADMIN_REMOVED, draining_since_ns: since_ns, ..*before }
}

/// The entry of a backend whose drain ended at `draining_since_ns`: free, or kept for one settle
/// time so that its flows are reset or dropped, as the service configures.
fn end(before: &Backend, service: Option<&WantedService>, now_ns: u64, plan: &mut Plan) -> Backend {
    let Some(service) = service.filter(|service| service.mode.is_dsr() && end_of_flows(service) != 0) else {
        return free(before);
    };
    let ends_ns = before.draining_since_ns.saturating_add(nanoseconds(service.settle_time));
    if now_ns >= ends_ns || !is_well_formed(before) {
        return free(before);
    }
    plan.ends(before.service, ends_ns);
    const ENDS: u32 = Backend::FLAG_SERVING | Backend::FLAG_RESET | Backend::FLAG_DROP;
    Backend { admin: backend::ADMIN_GONE, flags: before.flags & !ENDS | end_of_flows(service), ..*before }
}

fn free(before: &Backend) -> Backend {
    Backend { generation: before.generation, ..Backend::FREE }
}

/// Since when the backend has been draining; `None` if it is not.
fn drains_since(before: &Backend, now_ns: u64) -> Option<u64> {
    let drains = [backend::ADMIN_DRAINING, backend::ADMIN_REMOVED].contains(&before.admin);
    (drains && before.draining_since_ns > 0 && before.draining_since_ns <= now_ns).then_some(before.draining_since_ns)
}

fn is_well_formed(backend: &Backend) -> bool {
    const KNOWN: u32 = Backend::FLAG_SERVING
        | Backend::FLAG_LOCAL
        | Backend::FLAG_KEEP_SOURCE
        | Backend::FLAG_RESET
        | Backend::FLAG_DROP;
    (backend::WAY_NAT..=backend::WAY_IPIP_V6).contains(&backend.way)
        && (backend::ADMIN_ACTIVE..=backend::ADMIN_GONE).contains(&backend.admin)
        && backend.flags & !KNOWN == 0
}
