//! The contents of the maps as plain values, and the writes that change them. Reconcile compares
//! two images; only `maps` touches the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::{backend::Backend, service::Service, settings::Settings, slot::Slot};

/// The contents of every map that the agent writes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Image {
    /// `None` before the first write.
    pub settings: Option<Settings>,
    /// `lb_common::service::address` bits.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// By VIP and port.
    pub services: BTreeMap<SocketAddr, Service>,
    /// The slots of each range that a service names, by the range's offset in the arena. They are
    /// shared, because most of them don't change.
    pub rings: BTreeMap<u32, Arc<[Slot]>>,
    /// By index; free entries (family 0) whose generation is 0 are left out.
    pub backends: BTreeMap<u32, Backend>,
    /// By index in `SNAT_ADDRESSES`, without holes at the end.
    pub snat_addresses: Vec<Option<IpAddr>>,
    /// Prefixes whose addresses may send encapsulated packets.
    pub peers: BTreeSet<IpNet>,
    /// The interfaces to which XDP may redirect, by index.
    pub ways_out: BTreeMap<u32, u32>,
}

impl Image {
    /// Updates slots to the values that they hold.
    pub fn set_slots(&mut self, slots: &[(u32, Slot)]) {
        for (offset, ring) in &mut self.rings {
            let of_ring = |at: u32| at.checked_sub(*offset).map(|at| at as usize).filter(|at| *at < ring.len());
            let changes: Vec<(usize, Slot)> =
                slots.iter().filter_map(|(at, slot)| Some((of_ring(*at)?, *slot))).collect();
            if changes.is_empty() {
                continue;
            }
            let mut changed = ring.to_vec();
            for (at, slot) in changes {
                if let Some(place) = changed.get_mut(at) {
                    *place = slot;
                }
            }
            *ring = changed.into();
        }
    }
}

/// One write. Writes must be applied in the order in which reconcile gives them.
#[derive(Clone, PartialEq, Debug)]
pub enum Write {
    Settings(Settings),
    SnatAddress {
        index: u32,
        address: Option<IpAddr>,
    },
    Backend {
        index: u32,
        backend: Backend,
    },
    /// Sets the counters of a backend to zero, before its index is used for another one.
    ClearBackendStats {
        index: u32,
    },
    ClearServiceStats {
        index: u32,
    },
    /// By compare-and-swap. If the slot no longer holds `from`, because it was settled or the
    /// program has set a flag, the change is applied to its current value: see
    /// [`super::settle::change::follow`]. `now_ds` becomes the slot's clock if its owners were the
    /// same.
    Slot {
        at: u32,
        from: Slot,
        to: Slot,
        now_ds: u32,
    },
    /// Zeroes the SYN fingerprints that name these indexes, before the indexes are used for other
    /// backends.
    ForgetSyns {
        backends: BTreeSet<u32>,
    },
    /// Fills a range that no service names, by plain stores.
    Ring {
        offset: u32,
        slots: Vec<Slot>,
    },
    Service {
        vip: SocketAddr,
        service: Service,
    },
    RemoveService {
        vip: SocketAddr,
    },
    Address {
        address: IpAddr,
        bits: u32,
    },
    RemoveAddress {
        address: IpAddr,
    },
    Peer {
        prefix: IpNet,
    },
    RemovePeer {
        prefix: IpNet,
    },
    WayOut {
        ifindex: u32,
        flags: u32,
    },
    RemoveWayOut {
        ifindex: u32,
    },
    /// `membarrier(GLOBAL)`: no program that saw the state before the writes above is still
    /// running.
    GracePeriod,
}
