//! What a pass works on: the rings and VIPs of the DSR services, as the owner of the maps has
//! written them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{flow::Family, nat::NatTimeouts};

use crate::{
    dataplane::{plan::Wanted, programmed::Programmed},
    state::ServiceName,
};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettleScope {
    pub rings: Vec<RingScope>,
    /// The VIPs of DSR services; only these have exceptions.
    pub vips: BTreeMap<SocketAddr, VipScope>,
    /// Whether the VIPs of other services may still be wanted: see [`Wanted::holds`]. Their entries
    /// stay until they are idle.
    pub holds: bool,
    pub timeouts: NatTimeouts,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingScope {
    pub family: Family,
    pub offset: u32,
    pub len: u32,
    /// The id of the service.
    pub service: u32,
    pub settle_ns: u64,
    /// The service still waits for first verdicts on its backends. Until then every flow must have
    /// an entry, because its slot may get another owner without a transition.
    pub is_warming_up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VipScope {
    /// The offset of the VIP's ring.
    pub offset: u32,
    pub len: u32,
    /// The index of the VIP's counters in `SERVICE_STATS`.
    pub stats: u32,
}

impl VipScope {
    pub const fn has(&self, slot: u32) -> bool {
        slot >= self.offset && slot - self.offset < self.len
    }
}

impl SettleScope {
    /// `warming_up` are the names of the services that are warming up.
    pub fn of(wanted: &Wanted, programmed: &Programmed, warming_up: &BTreeSet<ServiceName>) -> Self {
        let mut rings: BTreeMap<u32, RingScope> = BTreeMap::new();
        let mut vips = BTreeMap::new();
        for service in wanted.services.iter().filter(|service| service.mode.is_dsr()) {
            let Some(part) = programmed.named(&service.name) else { continue };
            let settle_ns = u64::try_from(service.settle_time.as_nanos()).unwrap_or(u64::MAX);
            for ip in &service.vips {
                let vip = SocketAddr::new(*ip, service.port);
                let Some(entry) = part.services.get(&vip) else { continue };
                let (offset, len) = (entry.ring_offset, entry.ring_len);
                vips.insert(vip, VipScope { offset, len, stats: entry.stats });
                let ring = RingScope {
                    family: Family::of(ip),
                    offset,
                    len,
                    service: entry.id,
                    settle_ns,
                    is_warming_up: warming_up.contains(&service.name),
                };
                rings.insert(offset, ring);
            }
        }
        Self { rings: rings.into_values().collect(), vips, holds: wanted.holds, timeouts: wanted.settings.nat_timeouts }
    }
}
