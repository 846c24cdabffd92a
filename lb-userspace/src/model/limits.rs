//! How many backends, ring slots, services and addresses the maps of this node hold, and how many a
//! configuration needs.

use std::{collections::BTreeSet, fmt, net::IpAddr, ops::RangeInclusive};

use lb_common::{
    filter,
    flow::Family,
    limits::{MAX_ADDRESSES, MAX_BACKENDS, MAX_REFUSALS, MAX_VIP_PORTS, RING_ARENA_SLOTS, map},
};

use super::{Config, Service};

/// The sizes of the maps that the agent fills. They are fixed while the agent runs: see
/// [`super::NodeSettings::limits`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Backends of all services together, and one entry of Weir's own.
    pub backends: u32,
    /// Slots of all rings together, and one of Weir's own, at which VIPs that leave reject.
    pub ring_slots: u32,
    /// VIPs and ports of each family.
    pub services: u32,
    /// Addresses of each family that the programs know.
    pub addresses: u32,
}

/// One of the [`Limits`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Limit {
    Backends,
    RingSlots,
    Services,
    Addresses,
}

impl Default for Limits {
    fn default() -> Self {
        Self { backends: MAX_BACKENDS, ring_slots: RING_ARENA_SLOTS, services: MAX_VIP_PORTS, addresses: MAX_ADDRESSES }
    }
}

impl Limits {
    pub const fn of(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Backends => self.backends,
            Limit::RingSlots => self.ring_slots,
            Limit::Services => self.services,
            Limit::Addresses => self.addresses,
        }
    }

    /// The number of entries of `SERVICE_STATS`.
    pub const fn service_stats(&self) -> u32 {
        service_stats(self.services)
    }

    /// The number of entries of every map whose size follows from the limits, by the map's name.
    pub fn map_sizes(&self) -> impl Iterator<Item = (&'static str, u32)> + use<> {
        let limits = *self;
        LIMITED_MAPS.iter().map(move |map| (map.name, (map.entries)(limits.of(map.limit))))
    }
}

/// Every VIP and port of both families has counters.
const fn service_stats(services: u32) -> u32 {
    2 * services
}

/// A map whose size follows from a limit.
#[derive(Debug)]
pub struct LimitedMap {
    pub name: &'static str,
    pub limit: Limit,
    /// Whose indexes its keys are; `None` if it is no array of what the agent numbers.
    pub index: Option<IndexOf>,
    /// The number of its entries, from the limit.
    entries: fn(u32) -> u32,
    /// The least limit with which it has so many entries.
    limit_for: fn(u32) -> u32,
}

/// What the agent numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexOf {
    Slot,
    /// Two slots, one after the other.
    PairOfSlots,
    Backend,
    ServiceStats,
}

impl LimitedMap {
    /// A map with as many entries as the limit says.
    const fn new(name: &'static str, limit: Limit, index: Option<IndexOf>) -> Self {
        Self { name, limit, index, entries: |limit| limit, limit_for: |entries| entries }
    }

    /// The map of this name, if its size follows from a limit.
    pub fn named(name: &str) -> Option<&'static Self> {
        LIMITED_MAPS.iter().find(|map| map.name == name)
    }

    /// The least value of its limit with which the map has room for so many entries.
    pub fn limit_for(&self, entries: u32) -> u32 {
        (self.limit_for)(entries)
    }
}

static LIMITED_MAPS: [LimitedMap; 13] = [
    LimitedMap::new(map::RINGS, Limit::RingSlots, Some(IndexOf::Slot)),
    LimitedMap {
        entries: |slots| slots.div_ceil(2),
        limit_for: |words| words.saturating_mul(2),
        ..LimitedMap::new(map::SLOT_TIMES, Limit::RingSlots, Some(IndexOf::PairOfSlots))
    },
    LimitedMap::new(map::BACKENDS, Limit::Backends, Some(IndexOf::Backend)),
    LimitedMap::new(map::BACKEND_STATS, Limit::Backends, Some(IndexOf::Backend)),
    LimitedMap::new(map::SNAT_CURSORS, Limit::Backends, Some(IndexOf::Backend)),
    LimitedMap::new(map::HOPS, Limit::Backends, None),
    LimitedMap::new(map::SERVICES_V4, Limit::Services, None),
    LimitedMap::new(map::SERVICES_V6, Limit::Services, None),
    LimitedMap {
        entries: service_stats,
        limit_for: |entries| entries.div_ceil(2),
        ..LimitedMap::new(map::SERVICE_STATS, Limit::Services, Some(IndexOf::ServiceStats))
    },
    LimitedMap {
        entries: |services| if services / 2 > MAX_REFUSALS { services / 2 } else { MAX_REFUSALS },
        limit_for: |entries| entries.saturating_mul(2),
        ..LimitedMap::new(map::REFUSALS, Limit::Services, None)
    },
    LimitedMap::new(map::ADDRESSES_V4, Limit::Addresses, None),
    LimitedMap::new(map::ADDRESSES_V6, Limit::Addresses, None),
    LimitedMap { entries: filter::words, ..LimitedMap::new(map::ADDRESS_FILTER, Limit::Addresses, None) },
];

impl Limit {
    pub const ALL: [Limit; 4] = [Limit::Backends, Limit::RingSlots, Limit::Services, Limit::Addresses];

    /// Its key in the configuration.
    pub const fn key(self) -> &'static str {
        match self {
            Limit::Backends => "limits.backends",
            Limit::RingSlots => "limits.ringSlots",
            Limit::Services => "limits.services",
            Limit::Addresses => "limits.addresses",
        }
    }

    /// The values that the configuration may give it.
    pub const fn range(self) -> RangeInclusive<u32> {
        match self {
            Limit::Backends => 1024..=1 << 16,
            Limit::RingSlots => 1024..=1 << 24,
            Limit::Services => 1024..=1 << 16,
            Limit::Addresses => 1024..=1 << 18,
        }
    }

    /// Why there is an upper bound.
    pub const fn reason(self) -> &'static str {
        match self {
            Limit::Backends => "65535 backends, and one entry of Weir's own",
            Limit::RingSlots => "that is 192 MiB of kernel memory already",
            Limit::Services => "each has counters on every CPU, 6 MiB for each CPU already",
            Limit::Addresses => "as many as all VIPs and all backends can have",
        }
    }

    const fn things(self) -> &'static str {
        match self {
            Limit::Backends => "backends (one is Weir's own)",
            Limit::RingSlots => "ring slots (one is Weir's own)",
            Limit::Services => "VIPs and ports of each family",
            Limit::Addresses => {
                "addresses of each family (VIPs, SNAT addresses, and backends of services with source: keep)"
            }
        }
    }

    const fn way_out(self) -> &'static str {
        match self {
            Limit::Backends => "declare fewer backends",
            Limit::RingSlots => "choose a smaller ringSize, or fewer services",
            Limit::Services => "declare fewer VIPs and ports",
            Limit::Addresses => "use fewer addresses",
        }
    }
}

/// A limit that does not suffice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exceeded {
    pub limit: Limit,
    pub allows: u32,
    pub needed: u64,
    /// Which family needs as many; `None`: the limit is one for both.
    pub family: Option<Family>,
}

impl Exceeded {
    /// What the limit allows, what is needed, and what to do; without the limit's key.
    pub fn reason(&self) -> String {
        let Self { limit, allows, needed, family } = self;
        let of_family = family.map_or_else(String::new, |family| format!(" of {}", family.name()));
        let largest = *limit.range().end();
        let remedy = if *needed <= u64::from(largest) {
            format!("set it to {needed} or more")
        } else {
            format!("it can be {largest} at most, so {}", limit.way_out())
        };
        format!("allows {allows} {}, {needed}{of_family} are needed: {remedy}", limit.things())
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.limit.key(), self.reason())
    }
}

/// How much of each limit a configuration needs: at least, because the node's own addresses are not
/// in the file, and what was removed from the file keeps its place until it has drained.
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
    /// Adds a service; `addresses` are those of its addresses that nothing else needs.
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

    /// The limits that do not suffice, each once, in the order of [`Limit::ALL`].
    pub fn exceeds(&self, limits: &Limits) -> Vec<Exceeded> {
        self.counts.exceeds(limits)
    }

    /// The same if the service were added.
    pub fn exceeds_with(&self, service: &Service, limits: &Limits) -> Vec<Exceeded> {
        let service = OfService::of(service);
        let mut counts = self.counts;
        counts.add(&service, service.addresses.difference(&self.addresses));
        counts.exceeds(limits)
    }
}
