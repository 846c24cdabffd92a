//! The differences between two images, in the order in which they must be written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{backend::Backend, service::address::VIP, settings::Settings};

use super::super::image::{Image, Write};

/// The writes that turn `from` into `to`; `slots` are the writes of the slots. New entries are
/// written before the entries that name them: addresses and backends, slots, services, VIPs.
/// Removals are written in reverse order.
pub fn writes(from: &Image, to: &Image, slots: Vec<Write>) -> Vec<Write> {
    let mut writes = Vec::new();
    ways_out(from, to, &mut writes);
    let keeps_source = |image: &Image| image.settings.map_or(0, |settings| settings.flags & Settings::FLAG_KEEP_SOURCE);
    let mut settings = to.settings;
    if let Some(settings) = &mut settings {
        // The flag is cleared only after no backend needs it any more.
        settings.flags |= keeps_source(from);
    }
    push_settings(from.settings, settings, &mut writes);

    let appears = |index: &u32, backend: &Backend| {
        backend.family != 0 && from.backends.get(index).is_none_or(|before| !is_same_use(before, backend))
    };
    let has_new_backend = to.backends.iter().any(|(index, backend)| appears(index, backend));
    let has_new_ring = slots.iter().any(|write| matches!(write, Write::Ring { .. }));
    if has_new_backend || has_new_ring {
        // Wait until no program uses the index or the range in its former role.
        writes.push(Write::GracePeriod);
    }
    let used_again: BTreeSet<u32> = to
        .backends
        .iter()
        .filter(|(index, backend)| appears(index, backend) && from.backends.contains_key(index))
        .map(|(index, _)| *index)
        .collect();
    if !used_again.is_empty() {
        writes.push(Write::ForgetSyns { backends: used_again });
    }
    let address_at = |image: &Image, index: u32| image.snat_addresses.get(index as usize).copied().flatten();
    for (index, address) in (0..).zip(&to.snat_addresses) {
        if address.is_some() && *address != address_at(from, index) {
            writes.push(Write::SnatAddress { index, address: *address });
        }
    }
    let mut addresses = Addresses { now: from.addresses.clone() };
    for (address, bits) in &to.addresses {
        addresses.set(*address, addresses.of(address) | (bits & !VIP), &mut writes);
    }
    for (index, backend) in &to.backends {
        let before = from.backends.get(index);
        if appears(index, backend) {
            writes.push(Write::ClearBackendStats { index: *index });
        }
        if backend.is_serving() && before != Some(backend) {
            writes.push(Write::Backend { index: *index, backend: (*backend).into() });
        }
    }
    writes.extend(slots);
    writes.extend(to.peers.difference(&from.peers).map(|prefix| Write::Peer { prefix: *prefix }));
    for (vip, service) in &to.services {
        let before = from.services.get(vip);
        if before.is_none_or(|before| before.stats != service.stats) {
            writes.push(Write::ClearServiceStats { index: service.stats });
        }
        if before != Some(service) {
            writes.push(Write::Service { vip: *vip, service: (*service).into() });
        }
    }
    for (address, bits) in &to.addresses {
        addresses.set(*address, addresses.of(address) | bits, &mut writes);
    }
    removals(from, to, addresses, &mut writes);
    push_settings(settings, to.settings, &mut writes);
    writes
}

fn removals(from: &Image, to: &Image, mut addresses: Addresses, writes: &mut Vec<Write>) {
    for address in from.addresses.keys() {
        let keeps = to.addresses.get(address).copied().unwrap_or(0);
        addresses.set(*address, addresses.of(address) & (keeps | !VIP), writes);
    }
    let strangers = from.peers.difference(&to.peers);
    writes.extend(strangers.map(|prefix| Write::RemovePeer { prefix: *prefix }));
    let gone = from.services.keys().filter(|vip| !to.services.contains_key(vip));
    let before = writes.len();
    writes.extend(gone.map(|vip| Write::RemoveService { vip: *vip }));
    let is_free = |backend: &Backend| backend.family == 0;
    let frees =
        from.backends.iter().any(|(index, backend)| !is_free(backend) && to.backends.get(index).is_none_or(is_free));
    if frees || writes.len() > before {
        writes.push(Write::GracePeriod);
    }
    for (index, backend) in &to.backends {
        if !backend.is_serving() && from.backends.get(index) != Some(backend) {
            writes.push(Write::Backend { index: *index, backend: (*backend).into() });
        }
    }
    for index in from.backends.keys().filter(|index| !to.backends.contains_key(index)) {
        writes.push(Write::Backend { index: *index, backend: Backend::FREE.into() });
    }
    for (index, address) in (0..).zip(&from.snat_addresses) {
        if address.is_some() && to.snat_addresses.get(index as usize).copied().flatten().is_none() {
            writes.push(Write::SnatAddress { index, address: None });
        }
    }
    for address in from.addresses.keys() {
        addresses.set(*address, to.addresses.get(address).copied().unwrap_or(0), writes);
    }
}

fn ways_out(from: &Image, to: &Image, writes: &mut Vec<Write>) {
    let gone = from.ways_out.keys().filter(|ifindex| !to.ways_out.contains_key(ifindex));
    writes.extend(gone.map(|ifindex| Write::RemoveWayOut { ifindex: *ifindex }));
    let new = to.ways_out.iter().filter(|(ifindex, flags)| from.ways_out.get(ifindex) != Some(flags));
    writes.extend(new.map(|(ifindex, flags)| Write::WayOut { ifindex: *ifindex, flags: *flags }));
}

fn push_settings(from: Option<Settings>, to: Option<Settings>, writes: &mut Vec<Write>) {
    if let Some(settings) = to.filter(|_| from != to) {
        writes.push(Write::Settings(settings.into()));
    }
}

/// Whether both entries are of the same backend, so that its counters continue.
fn is_same_use(before: &Backend, after: &Backend) -> bool {
    before.family != 0
        && (before.generation, before.address, before.port_be, before.service)
            == (after.generation, after.address, after.port_be, after.service)
}

/// The bits of each address after the writes so far.
struct Addresses {
    now: BTreeMap<IpAddr, u32>,
}

impl Addresses {
    fn of(&self, address: &IpAddr) -> u32 {
        self.now.get(address).copied().unwrap_or(0)
    }

    fn set(&mut self, address: IpAddr, bits: u32, writes: &mut Vec<Write>) {
        match self.now.get(&address) {
            Some(now) if *now == bits => {}
            None if bits == 0 => {}
            Some(_) if bits == 0 => {
                self.now.remove(&address);
                writes.push(Write::RemoveAddress { address });
            }
            _ => {
                self.now.insert(address, bits);
                writes.push(Write::Address { address, bits });
            }
        }
    }
}
