//! The tables of exceptions of a family: ESTABLISHED, HALF_OPEN, SEEN.

use std::path::Path;

use aya::{
    Pod,
    maps::{HashMap, IterableMap, MapData, MapError},
};
use lb_common::{exception::Exception, flow::Flow};

use super::judge::Kind;
use crate::dataplane::{
    maps::{self, MapsError, scan_hash, unread},
    raw,
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

pub struct Table<A> {
    entries: HashMap<MapData, Flow<A>, Exception>,
    pub map: &'static str,
    pub max_entries: u32,
}

pub struct Tables<A> {
    pub half_open: Table<A>,
    pub established: Table<A>,
    pub seen: Table<A>,
}

/// What came of an insertion that replaces nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    Done,
    /// There is a newer one.
    Exists,
    Full,
}

impl<A> Tables<A>
where
    Flow<A>: Pod,
{
    /// Opens the pinned maps of these names.
    pub fn open(pin_dir: &Path, [half_open, established, seen]: [&'static str; 3]) -> Result<Self, MapsError> {
        Ok(Self {
            half_open: Table::open(pin_dir, half_open)?,
            established: Table::open(pin_dir, established)?,
            seen: Table::open(pin_dir, seen)?,
        })
    }

    pub fn of(&self, kind: Kind) -> &Table<A> {
        match kind {
            Kind::HalfOpen => &self.half_open,
            Kind::Established => &self.established,
            Kind::Seen => &self.seen,
        }
    }

    pub fn of_mut(&mut self, kind: Kind) -> &mut Table<A> {
        match kind {
            Kind::HalfOpen => &mut self.half_open,
            Kind::Established => &mut self.established,
            Kind::Seen => &mut self.seen,
        }
    }
}

impl<A> Table<A>
where
    Flow<A>: Pod,
{
    fn open(pin_dir: &Path, map: &'static str) -> Result<Self, MapsError> {
        let entries: HashMap<MapData, Flow<A>, Exception> = maps::open(pin_dir, map)?;
        let max_entries = IterableMap::map(&entries).info().map_err(unread(map))?.max_entries();
        Ok(Self { entries, map, max_entries })
    }

    pub fn find(&self, flow: &Flow<A>) -> Result<Option<Exception>, MapsError> {
        match self.entries.get(flow, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(unread(self.map)(error)),
        }
    }

    /// Inserts an entry if there is none.
    pub fn put(&mut self, flow: &Flow<A>, entry: &Exception) -> Result<Put, MapsError> {
        let error = match self.entries.insert(flow, entry, NO_EXIST) {
            Ok(()) => return Ok(Put::Done),
            Err(error) => error,
        };
        let number = match &error {
            MapError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match number {
            Some(libc::EEXIST) => Ok(Put::Exists),
            // ENOMEM: an LRU table of which every entry is being used just now.
            Some(libc::E2BIG | libc::ENOMEM) => Ok(Put::Full),
            _ => Err(MapsError::Write { map: self.map, key: "a flow".to_owned(), source: error }),
        }
    }

    /// Removes an entry; what it was, if there was one. No change of the program comes in between.
    pub fn take(&mut self, flow: &Flow<A>) -> Result<Option<Exception>, MapsError> {
        raw::take(IterableMap::map(&self.entries), flow).map_err(unread(self.map))
    }

    pub fn scan(&self, visit: impl FnMut(&Flow<A>, Exception)) -> Result<(), MapsError> {
        scan_hash(&self.entries, self.map, visit)
    }
}
