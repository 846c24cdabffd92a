//! Matches the service ids in the maps to the services of the configuration.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{entry::address, wanted::WantedService};
use crate::dataplane::image::Image;
use crate::{dataplane::arena::Numbers, state::ServiceName};

/// The id of each wanted service, by name: the id of the programmed service with which it shares
/// the most VIPs, then the most backends. So a service that is renamed, or gets other addresses,
/// keeps its id, its backends' indexes and therefore its flows.
///
/// If services of which `services` do not know may still be wanted (`holds`), common backends alone
/// make no service another one's successor.
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
    let mut pairs = Vec::new();
    for service in services {
        let mut common: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for vip in &service.vips {
            if let Some(id) = by_vip.get(&SocketAddr::new(*vip, service.port)) {
                common.entry(*id).or_default().0 += 1;
            }
        }
        for backend in &service.backends {
            for id in by_backend.get(&backend.address).into_iter().flatten() {
                common.entry(*id).or_default().1 += 1;
            }
        }
        let common = common.into_iter().filter(|(_, (vips, _))| *vips > 0 || !holds);
        pairs.extend(common.map(|(id, common)| (Reverse(common), &service.name, id)));
    }
    pairs.sort_unstable();
    let mut ids: BTreeMap<ServiceName, u32> = BTreeMap::new();
    let mut given = BTreeSet::from([0]);
    for (_, name, id) in pairs {
        if !ids.contains_key(name) && given.insert(id) {
            ids.insert(name.clone(), id);
        }
    }
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
