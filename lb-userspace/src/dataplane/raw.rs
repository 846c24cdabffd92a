//! The only unsafe code of the agent: three kernel interfaces that no library wraps safely. What leaves this module is safe.
#![expect(unsafe_code, reason = "mapping a BPF array, bpf(BPF_MAP_LOOKUP_BATCH) and membarrier have no safe wrapper")]

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    slice,
    sync::atomic::AtomicU64,
};

use aya::{
    Pod,
    maps::{MapData, MapError, MapType},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A BPF array of 64-bit words, made with BPF_F_MMAPABLE, shared with the programs that use it.
pub struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory belongs to this value until it is dropped, and is reached as atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub fn map(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let is_words = matches!(info.map_type(), Ok(MapType::Array)) && info.value_size() as usize == size_of::<u64>();
        let len = info.max_entries() as usize;
        let bytes = NonZeroUsize::new(len * size_of::<u64>());
        let (true, Some(bytes)) = (is_words, bytes) else {
            return Err(io::Error::other("not an array of 64-bit words"));
        };
        let (read_write, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses; it overlaps no memory of ours.
        let start = unsafe { mmap(None, bytes, read_write, shared, map.fd().as_fd(), 0) }?;
        Ok(Self { start: start.cast(), len })
    }

    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `map` checked that the array holds `len` words of 8 bytes, the mapping is page-aligned, and it lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and slices of it borrow `self`.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.len * size_of::<u64>()) } {
            tracing::error!(%error, "cannot unmap the ring arena");
        }
    }
}

/// Waits until no BPF program that runs now on any CPU is still running. It takes tens of milliseconds.
pub fn membarrier_global() -> io::Result<()> {
    // SAFETY: a system call with integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const FIRST_BATCH: usize = 4096;

/// Where a batch ended: a bucket number, or for arrays the last key.
type Position = [u64; 8];

/// Shows `visit` every entry of an array or hash map, some thousand for each system call. A per-CPU map has `cpus` values for each key, others one.
/// An entry that comes or goes meanwhile may be missed; others are seen once.
pub fn scan<K: Pod, V: Pod>(map: &MapData, cpus: usize, mut visit: impl FnMut(&K, &[V])) -> Result<(), MapError> {
    let info = map.info()?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    if key != size_of::<K>() || key > size_of::<Position>() {
        return Err(MapError::InvalidKeySize { size: size_of::<K>(), expected: key });
    }
    if value != size_of::<V>() || (cpus != 1 && value % 8 != 0) {
        return Err(MapError::InvalidValueSize { size: size_of::<V>(), expected: value });
    }
    let is_per_cpu = matches!(info.map_type()?, MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash);
    let possible = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    if cpus != if is_per_cpu { possible } else { 1 } {
        return Err(MapError::InvalidValueSize { size: cpus * size_of::<V>(), expected: possible * value });
    }

    let (mut at, mut next): (Position, Position) = ([0; 8], [0; 8]);
    let mut started = false;
    let mut size = FIRST_BATCH;
    let mut keys: Vec<K> = Vec::new();
    let mut values: Vec<V> = Vec::new();
    loop {
        keys.clear();
        values.clear();
        keys.reserve(size);
        values.reserve(size * cpus);
        let mut attr = BatchAttr {
            in_batch: if started { at.as_mut_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys and `count * cpus` values, for which there is room: the sizes were checked against
        // those of the map, and a position takes a key.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>()) };
        let error = io::Error::last_os_error();
        let last = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
        if result != 0 && !last {
            // A bucket with more entries than fit: ask again with more room.
            if error.raw_os_error() == Some(libc::ENOSPC) && size < info.max_entries() as usize {
                size *= 2;
                continue;
            }
            return Err(MapError::IoError(error));
        }
        let count = (attr.count as usize).min(size);
        // SAFETY: the kernel has filled so many; Pod types are valid for any bytes.
        unsafe {
            keys.set_len(count);
            values.set_len(count * cpus);
        }
        for (key, values) in keys.iter().zip(values.chunks_exact(cpus)) {
            visit(key, values);
        }
        if last {
            return Ok(());
        }
        (at, next) = (next, at);
        started = true;
    }
}
