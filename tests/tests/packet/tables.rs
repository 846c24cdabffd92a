//! The maps of one family as plain values, whichever family it is.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, MapData, lpm_trie::Key},
};
use lb_common::{
    flow::{Addr, AnyAddr, Family, Flow, any_addr, ip_addr},
    limits::map,
    nat::NatEntry,
    service::{Service, VipKey},
};

/// The 5-tuple of a TCP packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

pub const fn pair(src: SocketAddr, dst: SocketAddr) -> Pair {
    Pair { src, dst }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.src, self.dst)
    }
}

/// A `NatEntry` of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub to: Pair,
    pub backend: u32,
    pub generation: u32,
    pub stats: u32,
    pub flags: u32,
    pub sequence: u32,
    pub timestamp: u32,
    pub last_seen_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    HalfOpen,
    Established,
}

pub trait FamilyAddr: Addr {
    const FAMILY: Family;
}
impl FamilyAddr for u32 {
    const FAMILY: Family = Family::V4;
}
impl FamilyAddr for [u32; 4] {
    const FAMILY: Family = Family::V6;
}

/// What reading and writing one family's tables comes to.
pub trait Tables: Send {
    fn set_address(&mut self, address: IpAddr, bits: u32);
    fn set_service(&mut self, vip: SocketAddr, service: Service);
    /// Lets a prefix send encapsulated packets.
    fn add_peers(&mut self, prefix: IpAddr, bits: u32);
    fn flows(&self, table: Table) -> BTreeMap<Pair, Entry>;
    fn set_flow(&mut self, table: Table, key: Pair, entry: Entry);
    fn remove_flow(&mut self, table: Table, key: Pair);
    fn clear(&mut self);
    /// The hash of a flow and of its client's address, by the functions of lb-common.
    fn hashes(&self, key: &lb_common::hash::HashKey, flow: Pair) -> (u64, u64);
}

pub struct OfFamily<A> {
    addresses: HashMap<MapData, A, u32>,
    services: HashMap<MapData, VipKey<A>, Service>,
    peers: LpmTrie<MapData, A, u32>,
    half_open: HashMap<MapData, Flow<A>, NatEntry<A>>,
    established: HashMap<MapData, Flow<A>, NatEntry<A>>,
}

impl<A: FamilyAddr + Pod> OfFamily<A>
where
    VipKey<A>: Pod,
    Flow<A>: Pod,
    NatEntry<A>: Pod,
{
    pub fn take(ebpf: &mut Ebpf) -> Self {
        let [addresses, services, peers] = match A::FAMILY {
            Family::V4 => [map::ADDRESSES_V4, map::SERVICES_V4, map::PEERS_V4],
            Family::V6 => [map::ADDRESSES_V6, map::SERVICES_V6, map::PEERS_V6],
        }
        .map(|name| ebpf.take_map(name).unwrap());
        let [half_open, established] = match A::FAMILY {
            Family::V4 => [map::NAT_HALF_OPEN_V4, map::NAT_ESTABLISHED_V4],
            Family::V6 => [map::NAT_HALF_OPEN_V6, map::NAT_ESTABLISHED_V6],
        }
        .map(|name| ebpf.take_map(name).unwrap());
        Self {
            addresses: addresses.try_into().unwrap(),
            services: services.try_into().unwrap(),
            peers: peers.try_into().unwrap(),
            half_open: half_open.try_into().unwrap(),
            established: established.try_into().unwrap(),
        }
    }

    fn table(&self, table: Table) -> &HashMap<MapData, Flow<A>, NatEntry<A>> {
        match table {
            Table::HalfOpen => &self.half_open,
            Table::Established => &self.established,
        }
    }

    fn table_mut(&mut self, table: Table) -> &mut HashMap<MapData, Flow<A>, NatEntry<A>> {
        match table {
            Table::HalfOpen => &mut self.half_open,
            Table::Established => &mut self.established,
        }
    }
}

impl<A: FamilyAddr + Pod + Send> Tables for OfFamily<A>
where
    VipKey<A>: Pod,
    Flow<A>: Pod,
    NatEntry<A>: Pod,
{
    fn set_address(&mut self, address: IpAddr, bits: u32) {
        self.addresses.insert(addr::<A>(address), bits, 0).unwrap();
    }

    fn set_service(&mut self, vip: SocketAddr, service: Service) {
        self.services.insert(VipKey::tcp(addr::<A>(vip.ip()), vip.port().to_be()), service, 0).unwrap();
    }

    fn add_peers(&mut self, prefix: IpAddr, bits: u32) {
        self.peers.insert(&Key::new(bits, addr::<A>(prefix)), 1, 0).unwrap();
    }

    fn flows(&self, table: Table) -> BTreeMap<Pair, Entry> {
        let entries = self.table(table).iter().map(|entry| entry.unwrap());
        entries.map(|(key, entry)| (shown(&key), plain(&entry))).collect()
    }

    fn set_flow(&mut self, table: Table, key: Pair, entry: Entry) {
        self.table_mut(table).insert(flow::<A>(key), packed::<A>(&entry), 0).unwrap();
    }

    fn remove_flow(&mut self, table: Table, key: Pair) {
        self.table_mut(table).remove(&flow::<A>(key)).unwrap();
    }

    fn clear(&mut self) {
        clear(&mut self.addresses);
        clear(&mut self.services);
        let peers: Vec<Key<A>> = self.peers.keys().map(|key| key.unwrap()).collect();
        for peer in peers {
            self.peers.remove(&peer).unwrap();
        }
        clear(&mut self.half_open);
        clear(&mut self.established);
    }

    fn hashes(&self, key: &lb_common::hash::HashKey, pair: Pair) -> (u64, u64) {
        let flow = flow::<A>(pair);
        (A::hash_flow(key, &flow), A::hash_client(key, &flow.src))
    }
}

pub fn clear<K: Pod, V: Pod>(table: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = table.keys().map(|key| key.unwrap()).collect();
    for key in keys {
        table.remove(&key).unwrap();
    }
}

fn addr<A: Addr>(address: IpAddr) -> A {
    A::from_any(&any_addr(address))
}

fn flow<A: Addr>(pair: Pair) -> Flow<A> {
    Flow {
        src: addr(pair.src.ip()),
        dst: addr(pair.dst.ip()),
        src_port_be: pair.src.port().to_be(),
        dst_port_be: pair.dst.port().to_be(),
    }
}

fn shown<A: FamilyAddr>(flow: &Flow<A>) -> Pair {
    let end = |address: A, port_be: u16| {
        let words: AnyAddr = address.to_any();
        SocketAddr::new(ip_addr(A::FAMILY, words), u16::from_be(port_be))
    };
    pair(end(flow.src, flow.src_port_be), end(flow.dst, flow.dst_port_be))
}

fn plain<A: FamilyAddr>(entry: &NatEntry<A>) -> Entry {
    let NatEntry { to, backend, generation, stats, flags, sequence, timestamp, reserved: _, last_seen_ns } = entry;
    Entry {
        to: shown(to),
        backend: *backend,
        generation: *generation,
        stats: *stats,
        flags: *flags,
        sequence: *sequence,
        timestamp: *timestamp,
        last_seen_ns: *last_seen_ns,
    }
}

fn packed<A: FamilyAddr>(entry: &Entry) -> NatEntry<A> {
    let Entry { to, backend, generation, stats, flags, sequence, timestamp, last_seen_ns } = *entry;
    NatEntry { to: flow(to), backend, generation, stats, flags, sequence, timestamp, reserved: 0, last_seen_ns }
}
