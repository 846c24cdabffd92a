//! The flow tables, and the one way to open, look up, list, insert and remove their entries. Each
//! user has its own handles, so it can run on a blocking thread while the owner of the maps goes
//! on.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap, MapData, MapError},
};
use lb_common::flow::{Addr, Family, Flow, V4Addr, V6Addr, ip_addr, v4_addr, v6_addr};

use super::{
    maps::{self, MapsError, scan_hash, unread},
    raw,
};

pub(crate) mod dsr;
pub(crate) mod exceptions;
pub mod nat;
mod query;

pub use query::FlowQuery;

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// A table of one address family, whose entries are of type `V`.
pub struct Table<A, V> {
    entries: HashMap<MapData, Flow<A>, V>,
    pub map: &'static str,
    pub max_entries: u32,
}

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableFill {
    pub map: &'static str,
    pub entries: u64,
    pub max_entries: u64,
}

/// The result of an insertion that never replaces an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insertion {
    Done,
    /// A newer entry exists.
    Exists,
    Full,
}

impl<A, V: Pod> Table<A, V>
where
    Flow<A>: Pod,
{
    /// Opens the pinned map of this name.
    pub fn open(pin_dir: &Path, map: &'static str) -> Result<Self, MapsError> {
        let entries: HashMap<MapData, Flow<A>, V> = maps::open(pin_dir, map)?;
        let max_entries = IterableMap::map(&entries).info().map_err(unread(map))?.max_entries();
        Ok(Self { entries, map, max_entries })
    }

    pub fn find(&self, flow: &Flow<A>) -> Result<Option<V>, MapsError> {
        match self.entries.get(flow, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(unread(self.map)(error)),
        }
    }

    /// Inserts an entry if the flow has none.
    pub fn put(&mut self, flow: &Flow<A>, entry: &V) -> Result<Insertion, MapsError> {
        let error = match self.entries.insert(flow, entry, NO_EXIST) {
            Ok(()) => return Ok(Insertion::Done),
            Err(error) => error,
        };
        let number = match &error {
            MapError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match number {
            Some(libc::EEXIST) => Ok(Insertion::Exists),
            // ENOMEM: all entries of an LRU table are in use at this moment.
            Some(libc::E2BIG | libc::ENOMEM) => Ok(Insertion::Full),
            _ => Err(MapsError::Write { map: self.map, key: "a flow".to_owned(), source: error }),
        }
    }

    /// Removes an entry and returns it, if it existed. This is atomic: the program cannot change
    /// the entry between the read and the removal.
    pub fn take(&mut self, flow: &Flow<A>) -> Result<Option<V>, MapsError> {
        raw::take(IterableMap::map(&self.entries), flow).map_err(unread(self.map))
    }

    /// Removes an entry; returns whether it existed.
    pub fn remove(&mut self, flow: &Flow<A>) -> Result<bool, MapsError> {
        match self.entries.remove(flow) {
            Ok(()) => Ok(true),
            Err(error) if maps::is_absent(&error) => Ok(false),
            Err(error) => Err(MapsError::Write { map: self.map, key: "a flow".to_owned(), source: error }),
        }
    }

    pub fn scan(&self, visit: impl FnMut(&Flow<A>, V)) -> Result<(), MapsError> {
        scan_hash(&self.entries, self.map, visit)
    }

    pub fn fill(&self, entries: u64) -> TableFill {
        TableFill { map: self.map, entries, max_entries: u64::from(self.max_entries) }
    }
}

/// The table key for a client's packets to a VIP, by address family.
enum FlowKey {
    V4(Flow<V4Addr>),
    V6(Flow<V6Addr>),
}

/// `None` if the address families differ.
fn flow_key(client: SocketAddr, vip: SocketAddr) -> Option<FlowKey> {
    let (src_port_be, dst_port_be) = (client.port().to_be(), vip.port().to_be());
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Some(FlowKey::V4(Flow { src: v4_addr(src), dst: v4_addr(dst), src_port_be, dst_port_be }))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Some(FlowKey::V6(Flow { src: v6_addr(src), dst: v6_addr(dst), src_port_be, dst_port_be }))
        }
        _ => None,
    }
}

/// An address and port of a flow as a `SocketAddr`.
fn socket_address<A: Addr>(family: Family, address: A, port_be: u16) -> SocketAddr {
    SocketAddr::new(ip_addr(family, address.to_any()), u16::from_be(port_be))
}
