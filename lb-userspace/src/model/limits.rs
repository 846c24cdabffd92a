//! How many backends, ring slots, services and addresses the maps of this node hold.

use std::{fmt, ops::RangeInclusive};

use lb_common::{
    filter,
    flow::Family,
    limits::{MAX_ADDRESSES, MAX_BACKENDS, MAX_REFUSALS, MAX_VIP_PORTS, RING_ARENA_SLOTS, map},
};

/// The sizes of the maps that the agent fills. They are fixed while the agent runs: see
/// [`super::NodeSettings::limits`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Backends of all services together, and one entry of Weir's own.
    pub backends: u32,
    /// Slots of all rings together, and one of Weir's own, which rejects connections to removed
    /// VIPs.
    pub ring_slots: u32,
    /// Pairs of VIP and port of each family.
    pub services: u32,
    /// Addresses of each family that the BPF programs know.
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

/// Every pair of VIP and port has counters, in both families.
const fn service_stats(services: u32) -> u32 {
    2 * services
}

/// A map whose size follows from a limit.
#[derive(Debug)]
pub struct LimitedMap {
    pub name: &'static str,
    pub limit: Limit,
    /// The objects whose indexes are the map's keys; `None` if the map is not an array of such
    /// objects.
    pub index: Option<IndexOf>,
    /// Computes the number of the map's entries from the limit.
    entries: fn(u32) -> u32,
    /// Computes the smallest limit with which the map has this many entries.
    limit_for: fn(u32) -> u32,
}

/// The objects to which the agent assigns indexes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexOf {
    Slot,
    /// Two adjacent slots.
    PairOfSlots,
    Backend,
    ServiceStats,
}

impl LimitedMap {
    /// A map with as many entries as the value of the limit.
    const fn new(name: &'static str, limit: Limit, index: Option<IndexOf>) -> Self {
        Self { name, limit, index, entries: |limit| limit, limit_for: |entries| entries }
    }

    /// The map of this name, if its size follows from a limit.
    pub fn named(name: &str) -> Option<&'static Self> {
        LIMITED_MAPS.iter().find(|map| map.name == name)
    }

    /// The smallest value of the map's limit with which it has room for this many entries.
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

    /// The limit's key in the configuration.
    pub const fn key(self) -> &'static str {
        match self {
            Limit::Backends => "limits.backends",
            Limit::RingSlots => "limits.ringSlots",
            Limit::Services => "limits.services",
            Limit::Addresses => "limits.addresses",
        }
    }

    /// The values that the configuration may set.
    pub const fn range(self) -> RangeInclusive<u32> {
        match self {
            Limit::Backends => 1024..=1 << 16,
            Limit::RingSlots => 1024..=1 << 24,
            Limit::Services => 1024..=1 << 16,
            Limit::Addresses => 1024..=1 << 18,
        }
    }

    /// The reason for the upper bound.
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
    /// The family that needs more than the limit; `None` if the limit covers both families
    /// together.
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
