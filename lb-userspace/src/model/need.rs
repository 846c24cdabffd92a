//! How much of the limits a configuration needs.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::flow::Family;

use super::{
    config::Config,
    limits::{Exceeded, Limit, Limits},
    service::Service,
};

/// How much of each limit a configuration needs at least. It may need more, because the node's own
/// addresses are not in the file, and removed VIPs and backends keep their entries until they have
/// drained.
#[derive(Clone, Debug, Default)]
pub struct Need {
    counts: Counts,
    addresses: BTreeSet<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    backends: u64,
    ring_slots: u64,
    /// IPv4 and IPv6.
    vip_ports: [u64; 2],
    addresses: [u64; 2],
}

impl Default for Counts {
    fn default() -> Self {
        Self { backends: 1, ring_slots: 1, vip_ports: [0; 2], addresses: [0; 2] }
    }
}

/// What one service needs.
struct OfService {
    vips: Vec<IpAddr>,
    ring_size: u32,
    backends: u64,
    addresses: BTreeSet<IpAddr>,
}

impl OfService {
    fn new(
        vips: impl IntoIterator<Item = IpAddr>,
        ring_size: u32,
        backends: impl IntoIterator<Item = IpAddr>,
        keeps_source: bool,
    ) -> Self {
        let vips: Vec<IpAddr> = vips.into_iter().collect();
        let mut addresses: BTreeSet<IpAddr> = vips.iter().copied().collect();
        let mut count = 0;
        for backend in backends {
            count += 1;
            if keeps_source {
                addresses.insert(backend);
            }
        }
        Self { vips, ring_size, backends: count, addresses }
    }

    fn of(service: &Service) -> Self {
        let backends = service.backends.iter().map(|backend| backend.address.ip());
        Self::new(service.vips.iter().copied(), service.ring_size, backends, service.keeps_source())
    }
}

impl Counts {
    /// Adds a service; `addresses` are those of its addresses that are to be counted.
    fn add<'a>(&mut self, service: &OfService, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        let v6 = service.vips.iter().filter(|vip| vip.is_ipv6()).count() as u64;
        let of_families = [service.vips.len() as u64 - v6, v6];
        for (all, count) in self.vip_ports.iter_mut().zip(of_families) {
            *all += count;
            self.ring_slots += if count > 0 { u64::from(service.ring_size) } else { 0 };
        }
        self.backends += service.backends;
        addresses.into_iter().for_each(|address| self.add_address(address));
    }

    fn add_address(&mut self, address: &IpAddr) {
        let [v4, v6] = &mut self.addresses;
        *(if address.is_ipv6() { v6 } else { v4 }) += 1;
    }

    fn exceeds(&self, limits: &Limits) -> Vec<Exceeded> {
        Limit::ALL.into_iter().filter_map(|limit| self.exceeds_one(limits, limit)).collect()
    }

    fn exceeds_one(&self, limits: &Limits, limit: Limit) -> Option<Exceeded> {
        let larger = |[v4, v6]: [u64; 2]| if v6 > v4 { (v6, Some(Family::V6)) } else { (v4, Some(Family::V4)) };
        let (needed, family) = match limit {
            Limit::Backends => (self.backends, None),
            Limit::RingSlots => (self.ring_slots, None),
            Limit::Services => larger(self.vip_ports),
            Limit::Addresses => larger(self.addresses),
        };
        let allows = limits.of(limit);
        (needed > u64::from(allows)).then_some(Exceeded { limit, allows, needed, family })
    }
}

impl Need {
    pub fn of(config: &Config) -> Self {
        let mut need = Self::default();
        need.add_addresses(config.node.snat.addresses.iter().copied());
        config.services.iter().for_each(|service| need.add(service));
        need
    }

    pub fn add_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            if self.addresses.insert(address) {
                self.counts.add_address(&address);
            }
        }
    }

    pub fn add(&mut self, service: &Service) {
        self.add_one(OfService::of(service));
    }

    /// Adds a service with these VIPs, a ring of `ring_size` slots for each of their families, and
    /// these backends.
    pub fn add_service(
        &mut self,
        vips: impl IntoIterator<Item = IpAddr>,
        ring_size: u32,
        backends: impl IntoIterator<Item = IpAddr>,
        keeps_source: bool,
    ) {
        self.add_one(OfService::new(vips, ring_size, backends, keeps_source));
    }

    fn add_one(&mut self, service: OfService) {
        self.counts.add(&service, []);
        self.add_addresses(service.addresses);
    }

    /// The limits that are too small, each once, in the order of [`Limit::ALL`].
    pub fn exceeds(&self, limits: &Limits) -> Vec<Exceeded> {
        self.counts.exceeds(limits)
    }

    /// Like [`Need::exceeds`], if the service were added.
    pub fn exceeds_with(&self, service: &Service, limits: &Limits) -> Vec<Exceeded> {
        let service = OfService::of(service);
        let mut counts = self.counts;
        counts.add(&service, service.addresses.difference(&self.addresses));
        counts.exceeds(limits)
    }
}
