//! Maps as raw bytes, for callers that learn the layout of a map only at run time.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::maps::{MapData, MapError, MapInfo, MapType};

use super::syscall::bpf;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

const FIRST_BATCH: usize = 4096;
const FIRST_BATCH_BYTES: usize = 4 << 20;

/// Where a batch ended: a bucket number, or for arrays the last key.
type Position = [u64; 32];

/// `union bpf_attr` for BPF_MAP_*_ELEM.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for BPF_MAP_*_BATCH.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map with keys of `key` bytes and values of `value` bytes; the value of a per-CPU map includes
/// those of all CPUs.
pub struct Bytes<'a> {
    map: &'a MapData,
    pub info: MapInfo,
    pub key: usize,
    pub value: usize,
    /// Bytes of one CPU's value; equal to `value` if the map is not per-CPU.
    pub each: usize,
}

/// What to do if the entry already exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    Any,
    /// Only if the entry does not exist.
    New,
    /// Only if the entry exists.
    Existing,
}

impl<'a> Bytes<'a> {
    pub fn of(map: &'a MapData) -> Result<Self, MapError> {
        let info = map.info()?;
        let key = info.key_size() as usize;
        if key > size_of::<Position>() {
            return Err(MapError::InvalidKeySize { size: size_of::<Position>(), expected: key });
        }
        let value = info.value_size() as usize;
        let (each, cpus) = if is_per_cpu(&info)? {
            (value.next_multiple_of(8), aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?)
        } else {
            (value, 1)
        };
        Ok(Self { map, info, key, value: each * cpus, each })
    }

    /// Reads the value of an entry into `value`; returns false if there is none.
    pub fn find(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.key, self.value));
        match self.element(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Writes an entry; returns false if `put` forbids it.
    pub fn put(&self, key: &[u8], value: &[u8], put: Put) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.key, self.value));
        match self.element(BPF_MAP_UPDATE_ELEM, key, value.as_ptr() as u64, put as u64) {
            Err(error) if put == Put::New && error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) if put == Put::Existing && error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Removes an entry; returns false if there is none.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.key);
        match self.element(BPF_MAP_DELETE_ELEM, key, 0, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Removes an entry of a hash map (Linux 5.14) and stores its value in `value`; returns false
    /// if there is none.
    pub fn take(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.key, self.value));
        match self.element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, value.as_mut_ptr() as u64, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    fn element(&self, command: libc::c_long, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        let mut attr = ElementAttr { map_fd: self.fd(), padding: 0, key: key.as_ptr() as u64, value, flags };
        // SAFETY: the callers checked that key and value have the sizes of the map's.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// Writes entries whose keys and values are stored one after the other in `keys` and `values`.
    pub fn put_all(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key;
        assert_eq!((keys.len(), values.len()), (count * self.key, count * self.value));
        if count == 0 {
            return Ok(());
        }
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: count as u32,
            map_fd: self.fd(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `count` keys and values; the assertion checked that there are as
        // many.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }

    /// Calls `visit` for every entry, reading some thousand of them per system call. Entries added
    /// or removed meanwhile may be missed; the others are seen once.
    pub fn scan(&self, visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.scan_first(u32::MAX, visit)
    }

    /// Like `scan`, but the entries of an array from index `end` on need not be visited.
    pub fn scan_first(&self, end: u32, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let is_array = matches!(self.info.map_type(), Ok(MapType::Array | MapType::PerCpuArray));
        let (mut at, mut next): (Position, Position) = Default::default();
        let mut started = false;
        let mut size = FIRST_BATCH.min(FIRST_BATCH_BYTES / (self.key + self.value)).max(16);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(size * self.key, 0_u8);
            values.resize(size * self.value, 0_u8);
            let mut attr = BatchAttr {
                in_batch: if started { at.as_mut_ptr() as u64 } else { 0 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: size as u32,
                map_fd: self.fd(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel writes at most `count` keys and values, for which there is room,
            // and a position has room for a key.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let last = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket has more entries than fit: retry with more room.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < self.info.max_entries() as usize => {
                    size *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(size);
            for (key, value) in keys.chunks_exact(self.key).zip(values.chunks_exact(self.value)).take(count) {
                visit(key, value);
            }
            let reached = keys.chunks_exact(self.key).take(count).next_back().and_then(|key| key.try_into().ok());
            let is_enough = is_array && reached.is_some_and(|key| u32::from_ne_bytes(key) >= end.saturating_sub(1));
            if last || is_enough {
                return Ok(());
            }
            (at, next) = (next, at);
            started = true;
        }
    }

    fn fd(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd() as u32
    }
}

/// Whether each CPU has its own values.
pub fn is_per_cpu(info: &MapInfo) -> Result<bool, MapError> {
    Ok(matches!(info.map_type()?, MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash))
}
