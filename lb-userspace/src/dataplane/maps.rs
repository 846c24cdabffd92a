//! The maps that the agent writes, with types. One task owns them; the readers of counters and flow
//! tables have their own handles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, lpm_trie},
};
use ipnet::IpNet;
use lb_common::{
    backend::Backend,
    filter,
    flow::{AnyAddr, Family, V4Addr, V6Addr, any_addr, ip_addr, v4_addr, v6_addr},
    limits::map,
    service::{Refusal, Service, Stats, TCP, VipKey},
    settings::Settings,
    verdict::Reason,
};

use super::{
    image::{Image, Write},
    raw,
    rings::Rings,
    settle::syns::Syns,
};

#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    #[error("cannot open the pinned map {}: {source}", .path.display())]
    Open { path: PathBuf, source: MapError },
    #[error("cannot map {} into memory: {source}", .path.display())]
    Arena { path: PathBuf, source: io::Error },
    #[error("cannot read map {map}: {source}")]
    Read { map: &'static str, source: MapError },
    #[error("cannot write {key} in map {map}: {source}{}", hint(.source))]
    Write { map: &'static str, key: String, source: MapError },
    #[error("slot {at} is outside of the ring arena of {slots} slots")]
    NoSuchSlot { at: u32, slots: usize },
    #[error("membarrier(MEMBARRIER_CMD_GLOBAL): {0}")]
    GracePeriod(io::Error),
}

/// The maps that the agent writes, with this process's handles to them.
pub struct Maps {
    settings: Array<MapData, Settings>,
    address_filter: Array<MapData, u64>,
    addresses_v4: HashMap<MapData, V4Addr, u32>,
    addresses_v6: HashMap<MapData, V6Addr, u32>,
    services_v4: HashMap<MapData, VipKey<V4Addr>, Service>,
    services_v6: HashMap<MapData, VipKey<V6Addr>, Service>,
    services_epoch: Array<MapData, u64>,
    rings: Arc<Rings>,
    backends: Array<MapData, Backend>,
    snat_addresses: Array<MapData, AnyAddr>,
    service_stats: PerCpuArray<MapData, Stats>,
    backend_stats: PerCpuArray<MapData, Stats>,
    refusals: PerCpuHashMap<MapData, Refusal, u64>,
    ways_out: HashMap<MapData, u32, u32>,
    peers_v4: LpmTrie<MapData, V4Addr, u32>,
    peers_v6: LpmTrie<MapData, V6Addr, u32>,
    syns: Syns,
    cpus: usize,
}

impl Maps {
    /// Opens the maps that `DataPath::open` has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| MapsError::Open { path: path.into(), source: source.into() })?;
        Ok(Self {
            settings: open(pin_dir, map::SETTINGS)?,
            address_filter: open(pin_dir, map::ADDRESS_FILTER)?,
            addresses_v4: open(pin_dir, map::ADDRESSES_V4)?,
            addresses_v6: open(pin_dir, map::ADDRESSES_V6)?,
            services_v4: open(pin_dir, map::SERVICES_V4)?,
            services_v6: open(pin_dir, map::SERVICES_V6)?,
            services_epoch: open(pin_dir, map::SERVICES_EPOCH)?,
            rings: Rings::open(pin_dir)
                .map_err(|source| MapsError::Arena { path: pin_dir.join(map::RINGS), source })?
                .into(),
            backends: open(pin_dir, map::BACKENDS)?,
            snat_addresses: open(pin_dir, map::SNAT_ADDRESSES)?,
            service_stats: open(pin_dir, map::SERVICE_STATS)?,
            backend_stats: open(pin_dir, map::BACKEND_STATS)?,
            refusals: open(pin_dir, map::REFUSALS)?,
            ways_out: open(pin_dir, map::WAYS_OUT)?,
            peers_v4: open(pin_dir, map::PEERS_V4)?,
            peers_v6: open(pin_dir, map::PEERS_V6)?,
            syns: Syns::open(pin_dir).map_err(|source| MapsError::Arena { path: pin_dir.join(map::SYNS), source })?,
            cpus,
        })
    }

    /// The slots, as the programs see them.
    pub fn slots(&self) -> &Rings {
        &self.rings
    }

    /// The slots, for readers that outlive a borrow of `Maps`.
    pub fn shared_slots(&self) -> Arc<Rings> {
        self.rings.clone()
    }

    /// Reads the current contents of the maps, including changes made by others.
    pub fn read(&self) -> Result<Image, MapsError> {
        let services = self.read_services()?;
        let backends = self.read_backends()?;
        Ok(Image {
            settings: self.read_settings()?,
            addresses: self.read_addresses()?,
            snat_addresses: self.read_snat_addresses(&backends)?,
            services,
            backends,
            peers: self.read_peers()?,
            ways_out: hash(&self.ways_out, map::WAYS_OUT)?,
        })
    }

    /// Applies one write.
    pub fn apply(&mut self, write: &Write) -> Result<(), MapsError> {
        match write {
            Write::Slot { at, from, to, now_ds } => {
                let missing = || MapsError::NoSuchSlot { at: *at, slots: self.rings.len() };
                self.rings.change(*at, *from, *to, *now_ds).map(drop).ok_or_else(missing)
            }
            Write::Settings(settings) => {
                self.settings.set(0, **settings, 0).map_err(failed(map::SETTINGS, "the settings"))
            }
            Write::SnatAddress { index, address } => {
                let words = address.map(any_addr).unwrap_or_default();
                self.snat_addresses.set(*index, words, 0).map_err(failed(map::SNAT_ADDRESSES, index))
            }
            Write::Backend { index, backend } => {
                self.backends.set(*index, **backend, 0).map_err(failed(map::BACKENDS, index))
            }
            Write::ClearBackendStats { index } => {
                clear(&mut self.backend_stats, self.cpus, *index).map_err(failed(map::BACKEND_STATS, index))
            }
            Write::ClearServiceStats { index } => self.clear_service_stats(*index),
            Write::ForgetSyns { backends } => {
                self.syns.forget(backends);
                Ok(())
            }
            Write::Ring { offset, slots } => {
                if self.rings.fill(*offset, slots) {
                    Ok(())
                } else {
                    Err(MapsError::NoSuchSlot { at: *offset, slots: self.rings.len() })
                }
            }
            Write::Service { vip, service } => {
                self.put_service(*vip, service)?;
                self.let_services_be_looked_up()
            }
            Write::RemoveService { vip } => {
                self.remove_service(*vip)?;
                self.let_services_be_looked_up()
            }
            Write::Address { address, bits } => {
                // Write the filter before the address itself: the programs never look up an address
                // that the filter stops.
                self.let_through(address)?;
                match address {
                    IpAddr::V4(v4) => {
                        self.addresses_v4.insert(v4_addr(*v4), bits, 0).map_err(failed(map::ADDRESSES_V4, address))
                    }
                    IpAddr::V6(v6) => {
                        self.addresses_v6.insert(v6_addr(*v6), bits, 0).map_err(failed(map::ADDRESSES_V6, address))
                    }
                }
            }
            Write::RemoveAddress { address } => match address {
                IpAddr::V4(v4) => {
                    gone(self.addresses_v4.remove(&v4_addr(*v4))).map_err(failed(map::ADDRESSES_V4, address))
                }
                IpAddr::V6(v6) => {
                    gone(self.addresses_v6.remove(&v6_addr(*v6))).map_err(failed(map::ADDRESSES_V6, address))
                }
            },
            Write::Peer { prefix } => match prefix.addr() {
                IpAddr::V4(v4) => {
                    self.peers_v4.insert(&peer(prefix, v4_addr(v4)), 1, 0).map_err(failed(map::PEERS_V4, prefix))
                }
                IpAddr::V6(v6) => {
                    self.peers_v6.insert(&peer(prefix, v6_addr(v6)), 1, 0).map_err(failed(map::PEERS_V6, prefix))
                }
            },
            Write::RemovePeer { prefix } => match prefix.addr() {
                IpAddr::V4(v4) => {
                    gone(self.peers_v4.remove(&peer(prefix, v4_addr(v4)))).map_err(failed(map::PEERS_V4, prefix))
                }
                IpAddr::V6(v6) => {
                    gone(self.peers_v6.remove(&peer(prefix, v6_addr(v6)))).map_err(failed(map::PEERS_V6, prefix))
                }
            },
            Write::WayOut { ifindex, flags } => {
                self.ways_out.insert(ifindex, flags, 0).map_err(failed(map::WAYS_OUT, ifindex))
            }
            Write::RemoveWayOut { ifindex } => {
                gone(self.ways_out.remove(ifindex)).map_err(failed(map::WAYS_OUT, ifindex))
            }
            Write::GracePeriod => grace_period(),
        }
    }

    fn put_service(&mut self, vip: SocketAddr, service: &Service) -> Result<(), MapsError> {
        let port_be = vip.port().to_be();
        match vip.ip() {
            IpAddr::V4(v4) => self
                .services_v4
                .insert(VipKey::tcp(v4_addr(v4), port_be), service, 0)
                .map_err(failed(map::SERVICES_V4, vip)),
            IpAddr::V6(v6) => self
                .services_v6
                .insert(VipKey::tcp(v6_addr(v6), port_be), service, 0)
                .map_err(failed(map::SERVICES_V6, vip)),
        }
    }

    fn remove_service(&mut self, vip: SocketAddr) -> Result<(), MapsError> {
        let port_be = vip.port().to_be();
        match vip.ip() {
            IpAddr::V4(v4) => {
                gone(self.services_v4.remove(&VipKey::tcp(v4_addr(v4), port_be))).map_err(failed(map::SERVICES_V4, vip))
            }
            IpAddr::V6(v6) => {
                gone(self.services_v6.remove(&VipKey::tcp(v6_addr(v6), port_be))).map_err(failed(map::SERVICES_V6, vip))
            }
        }
    }

    /// Makes the programs look up `SERVICES_*` again instead of using their cached results. Call it
    /// after any change of these maps, and before a grace period.
    fn let_services_be_looked_up(&mut self) -> Result<(), MapsError> {
        let epoch = self.services_epoch.get(&0, 0).map_err(unread(map::SERVICES_EPOCH))?;
        self.services_epoch.set(0, epoch.wrapping_add(1).max(1), 0).map_err(failed(map::SERVICES_EPOCH, "the epoch"))
    }

    fn clear_service_stats(&mut self, index: u32) -> Result<(), MapsError> {
        for reason in Reason::ALL {
            let key = Refusal { stats: index, reason: *reason as u32 };
            gone(self.refusals.remove(&key)).map_err(failed(map::REFUSALS, index))?;
        }
        clear(&mut self.service_stats, self.cpus, index).map_err(failed(map::SERVICE_STATS, index))
    }

    fn let_through(&mut self, address: &IpAddr) -> Result<(), MapsError> {
        let (word, bit) = filter_bit(address, filter::shift(self.address_filter.len()));
        let before = self.address_filter.get(&word, 0).map_err(unread(map::ADDRESS_FILTER))?;
        if before & bit != 0 {
            self.address_filter.set(word, before & !bit, 0).map_err(failed(map::ADDRESS_FILTER, word))?;
        }
        Ok(())
    }

    /// Makes the programs' shortcuts (the address filter and the cached services) match the maps,
    /// which others may have changed. `image` must have just been read from the maps.
    pub fn fit_shortcuts(&mut self, image: &Image) -> Result<(), MapsError> {
        self.let_services_be_looked_up()?;
        for (word, wanted) in self.wrong_filter_words(image)? {
            self.address_filter.set(word, wanted, 0).map_err(failed(map::ADDRESS_FILTER, word))?;
        }
        Ok(())
    }

    /// The words of the address filter that do not fit the addresses of `image`: index and wanted
    /// value.
    pub fn wrong_filter_words(&self, image: &Image) -> Result<Vec<(u32, u64)>, MapsError> {
        let mut wanted = vec![u64::MAX; self.address_filter.len() as usize];
        let shift = filter::shift(self.address_filter.len());
        for (word, bit) in image.addresses.keys().map(|address| filter_bit(address, shift)) {
            if let Some(word) = wanted.get_mut(word as usize) {
                *word &= !bit;
            }
        }
        let mut wrong = Vec::new();
        scan_array(&self.address_filter, map::ADDRESS_FILTER, |word, found: u64| {
            if let Some(wanted) = wanted.get(word as usize).filter(|wanted| **wanted != found) {
                wrong.push((word, *wanted));
            }
        })?;
        Ok(wrong)
    }

    fn read_settings(&self) -> Result<Option<Settings>, MapsError> {
        let settings = self.settings.get(&0, 0).map_err(unread(map::SETTINGS))?;
        Ok((settings.layout != 0).then_some(settings))
    }

    fn read_addresses(&self) -> Result<BTreeMap<IpAddr, u32>, MapsError> {
        let v4 = hash(&self.addresses_v4, map::ADDRESSES_V4)?;
        let v6 = hash(&self.addresses_v6, map::ADDRESSES_V6)?;
        let v4 = v4.into_iter().map(|(address, bits)| (ip4(address), bits));
        Ok(v4.chain(v6.into_iter().map(|(address, bits)| (ip6(address), bits))).collect())
    }

    fn read_peers(&self) -> Result<BTreeSet<IpNet>, MapsError> {
        let mut peers = BTreeSet::new();
        for entry in self.peers_v4.iter() {
            let (key, _) = entry.map_err(unread(map::PEERS_V4))?;
            peers.extend(IpNet::new(ip4(key.data()), key.prefix_len().min(32) as u8).ok());
        }
        for entry in self.peers_v6.iter() {
            let (key, _) = entry.map_err(unread(map::PEERS_V6))?;
            peers.extend(IpNet::new(ip6(key.data()), key.prefix_len().min(128) as u8).ok());
        }
        Ok(peers)
    }

    /// Skips entries of protocols other than TCP: they are not ours, and nothing looks them up.
    fn read_services(&self) -> Result<BTreeMap<SocketAddr, Service>, MapsError> {
        let mut services = BTreeMap::new();
        scan_hash(&self.services_v4, map::SERVICES_V4, |key: &VipKey<V4Addr>, service| {
            if key.protocol == TCP {
                services.insert(SocketAddr::new(ip4(key.vip), u16::from_be(key.port_be)), service);
            }
        })?;
        scan_hash(&self.services_v6, map::SERVICES_V6, |key: &VipKey<V6Addr>, service| {
            if key.protocol == TCP {
                services.insert(SocketAddr::new(ip6(key.vip), u16::from_be(key.port_be)), service);
            }
        })?;
        Ok(services)
    }

    fn read_backends(&self) -> Result<BTreeMap<u32, Backend>, MapsError> {
        let mut backends = BTreeMap::new();
        scan_array(&self.backends, map::BACKENDS, |index, backend: Backend| {
            if backend != Backend::FREE {
                backends.insert(index, backend);
            }
        })?;
        Ok(backends)
    }

    fn read_snat_addresses(&self, backends: &BTreeMap<u32, Backend>) -> Result<Vec<Option<IpAddr>>, MapsError> {
        let mut addresses = Vec::new();
        scan_array(&self.snat_addresses, map::SNAT_ADDRESSES, |index, words: AnyAddr| {
            if words == AnyAddr::default() {
                return;
            }
            addresses.resize(index as usize, None);
            addresses.push(Some(ip_addr(family_of_snat(index, words, backends), words)));
        })?;
        Ok(addresses)
    }
}

/// The word and the bit of an address in the filter.
fn filter_bit(address: &IpAddr, shift: u32) -> (u32, u64) {
    match address {
        IpAddr::V4(v4) => filter::place(&v4_addr(*v4), shift),
        IpAddr::V6(v6) => filter::place(&v6_addr(*v6), shift),
    }
}

/// The family of a SNAT address. An IPv6 address that ends in twelve zero bytes looks like an IPv4
/// address; then the family of a backend that uses it decides.
fn family_of_snat(index: u32, words: AnyAddr, backends: &BTreeMap<u32, Backend>) -> Family {
    let [_, rest @ ..] = words;
    if rest != [0; 3] {
        return Family::V6;
    }
    let names = |backend: &&Backend| {
        let first = backend.snat_first as u32;
        (first..first + backend.snat_count as u32).contains(&index)
    };
    backends.values().find(names).and_then(|backend| Family::from_number(backend.family)).unwrap_or(Family::V4)
}

fn peer<A: Pod>(prefix: &IpNet, address: A) -> lpm_trie::Key<A> {
    lpm_trie::Key::new(u32::from(prefix.prefix_len()), address)
}

/// Waits until no program that saw the state before is still running. Blocks for tens of
/// milliseconds.
pub(super) fn grace_period() -> Result<(), MapsError> {
    match raw::membarrier_global() {
        // Kernels with nohz_full CPUs refuse the call. A program runs for microseconds, so this
        // sleep is long enough.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        }
        result => result.map_err(MapsError::GracePeriod),
    }
}

/// Opens the pinned map of this name, with keys and values of these types.
pub(super) fn open<M: TryFrom<Map, Error = MapError>>(pin_dir: &Path, name: &'static str) -> Result<M, MapsError> {
    let path = pin_dir.join(name);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(M::try_from);
    opened.map_err(|source| MapsError::Open { path, source })
}

pub(super) fn scan_hash<K: Pod, V: Pod>(
    table: &HashMap<MapData, K, V>,
    name: &'static str,
    mut visit: impl FnMut(&K, V),
) -> Result<(), MapsError> {
    use aya::maps::IterableMap;
    raw::scan(IterableMap::map(table), 1, |key: &K, values: &[V]| values.iter().for_each(|value| visit(key, *value)))
        .map_err(unread(name))
}

fn scan_array<V: Pod>(
    table: &Array<MapData, V>,
    name: &'static str,
    mut visit: impl FnMut(u32, V),
) -> Result<(), MapsError> {
    use aya::maps::IterableMap;
    raw::scan(IterableMap::map(table), 1, |key: &u32, values: &[V]| values.iter().for_each(|value| visit(*key, *value)))
        .map_err(unread(name))
}

fn hash<K: Pod + Ord, V: Pod>(table: &HashMap<MapData, K, V>, name: &'static str) -> Result<BTreeMap<K, V>, MapsError> {
    let mut entries = BTreeMap::new();
    scan_hash(table, name, |key, value| {
        entries.insert(*key, value);
    })?;
    Ok(entries)
}

fn clear(table: &mut PerCpuArray<MapData, Stats>, cpus: usize, index: u32) -> Result<(), MapError> {
    let zeros = PerCpuValues::try_from(vec![Stats::default(); cpus]).map_err(MapError::IoError)?;
    table.set(index, zeros, 0)
}

/// Removing an entry that does not exist is no error.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    }
}

pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

fn failed(map: &'static str, key: impl Display) -> impl FnOnce(MapError) -> MapsError {
    move |source| MapsError::Write { map, key: key.to_string(), source }
}

pub(super) fn unread(map: &'static str) -> impl FnOnce(MapError) -> MapsError {
    move |source| MapsError::Read { map, source }
}

fn hint(error: &MapError) -> &'static str {
    match error {
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
            " (the map is full: see `limits` in docs/operations.md)"
        }
        MapError::OutOfBounds { .. } => " (over the limit of this map: see `limits` in docs/operations.md)",
        _ => "",
    }
}

fn ip4(address: V4Addr) -> IpAddr {
    ip_addr(Family::V4, [address, 0, 0, 0])
}

fn ip6(address: V6Addr) -> IpAddr {
    ip_addr(Family::V6, address)
}
