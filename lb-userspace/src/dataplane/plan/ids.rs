//! Matches the service ids in the maps to the wanted services.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{entry::address, wanted::WantedService};
use crate::{
    dataplane::{arena::Numbers, image::Image},
    state::ServiceName,
};

/// The id of each wanted service, by name: the id of the programmed service with which it shares
/// the most VIPs, then the most backends. So a service that is renamed, or gets other addresses,
/// keeps its id, its backends' indexes and therefore its flows.
///
/// With `holds`, a service gets the id of a programmed service only if they share a VIP. Shared
/// backends alone are not enough, because the programmed service may still be wanted by a source
/// that has not listed it yet.
pub fn assign(services: &[Arc<WantedService>], programmed: &Image, holds: bool) -> BTreeMap<ServiceName, u32> {
    let mut by_vip: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for (vip, service) in &programmed.services {
        by_vip.insert(*vip, service.id);
    }
    let mut by_backend: BTreeMap<SocketAddr, BTreeSet<u32>> = BTreeMap::new();
    for backend in programmed.backends.values() {
        if let Some(address) = address(backend) {
            by_backend.entry(address).or_default().insert(backend.service);
        }
    }
    let mut ids = Ids { by_name: BTreeMap::new(), given: BTreeSet::from([0]) };

    // A common VIP counts more than any number of backends.
    let mut pairs = Vec::new();
    for service in services {
        let mut common: BTreeMap<u32, u32> = BTreeMap::new();
        for vip in &service.vips {
            if let Some(id) = by_vip.get(&SocketAddr::new(*vip, service.port)) {
                *common.entry(*id).or_default() += 1;
            }
        }
        for (id, vips) in common {
            let is_common = |address| by_backend.get(address).is_some_and(|ids| ids.contains(&id));
            let backends = service.backends.iter().filter(|backend| is_common(&backend.address)).count();
            pairs.push((Reverse((vips, backends)), &service.name, id));
        }
    }
    ids.give(pairs);

    // Shared backends are counted only for the services and ids that are left: many services may
    // have the same backends, which would make many pairs.
    if !holds {
        by_backend.values_mut().for_each(|of_backend| of_backend.retain(|id| !ids.given.contains(id)));
        let mut pairs = Vec::new();
        for service in services.iter().filter(|service| !ids.by_name.contains_key(&service.name)) {
            let mut common: BTreeMap<u32, usize> = BTreeMap::new();
            for backend in &service.backends {
                for id in by_backend.get(&backend.address).into_iter().flatten() {
                    *common.entry(*id).or_default() += 1;
                }
            }
            pairs.extend(common.into_iter().map(|(id, backends)| (Reverse((0, backends)), &service.name, id)));
        }
        ids.give(pairs);
    }

    let mut ids = ids.by_name;
    let mut numbers = Numbers::service_ids(programmed);
    for service in services {
        if !ids.contains_key(&service.name)
            && let Ok(id) = numbers.allocate()
        {
            ids.insert(service.name.clone(), id);
        }
    }
    ids
}

/// The numbers of VIPs and backends that a service and an id have in common; the service; the id.
type BackendsInCommon<'a> = (Reverse<(u32, usize)>, &'a ServiceName, u32);

struct Ids {
    by_name: BTreeMap<ServiceName, u32>,
    given: BTreeSet<u32>,
}

impl Ids {
    /// Gives ids to services, beginning with the pair that has the most in common. Each service
    /// gets at most one id, and each id is given at most once.
    fn give(&mut self, mut pairs: Vec<BackendsInCommon<'_>>) {
        pairs.sort_unstable();
        for (_, name, id) in pairs {
            if !self.by_name.contains_key(name) && self.given.insert(id) {
                self.by_name.insert(name.clone(), id);
            }
        }
    }
}
