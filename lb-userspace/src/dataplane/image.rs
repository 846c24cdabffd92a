//! The contents of the maps as plain values, except the slots, which are read where they are; and
//! the writes that change them. Reconcile compares two images; only `maps` touches the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{backend::Backend, service::Service, settings::Settings, slot::Slot};

use crate::model::MAX_RING_SIZE;

/// The contents of every map that the agent writes, except the slots of the rings: see [`Slots`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Image {
    /// `None` before the first write.
    pub settings: Option<Settings>,
    /// The `lb_common::service::address` bits of each address.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// By VIP and port.
    pub services: BTreeMap<SocketAddr, Service>,
    /// By index; free entries (family 0) whose generation is 0 are left out.
    pub backends: BTreeMap<u32, Backend>,
    /// By index in `SNAT_ADDRESSES`, without holes at the end.
    pub snat_addresses: Vec<Option<IpAddr>>,
    /// Prefixes whose addresses may send encapsulated packets.
    pub peers: BTreeSet<IpNet>,
    /// By interface index: the `WAY_OUT_*` bits, which say how XDP may send through the interface.
    pub ways_out: BTreeMap<u32, u32>,
}

impl Image {
    /// The ranges of the arena that services name, as offset and length; also those that only a
    /// damaged entry can name, unless they are longer than any ring.
    pub fn ranges(&self) -> BTreeSet<(u32, u32)> {
        let ranges = self.services.values().map(|service| (service.ring_offset, service.ring_len));
        ranges.filter(|(_, len)| *len <= MAX_RING_SIZE).collect()
    }
}

/// The slots of all rings as they are now. There may be millions of them, and programs and the
/// settle task change them at any time, so they are read from the arena and not copied.
pub trait Slots {
    /// The slots from `offset` on; fewer than `len` if the arena ends first.
    fn range(&self, offset: u32, len: u32) -> Vec<Slot>;
}

/// One write. Writes must be applied in the order in which reconcile gives them. Large values are
/// boxed, because most writes of a large plan are of slots, which are small.
#[derive(Clone, PartialEq, Debug)]
pub enum Write {
    Settings(Box<Settings>),
    SnatAddress {
        index: u32,
        address: Option<IpAddr>,
    },
    Backend {
        index: u32,
        backend: Box<Backend>,
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
        service: Box<Service>,
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
