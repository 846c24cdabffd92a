//! The only unsafe code of the agent besides `heap`: kernel interfaces that no library wraps
//! safely. This module's API is safe.
#![expect(
    unsafe_code,
    reason = "mapping a BPF array, membarrier, much of bpf(2) and bytes as values have no safe wrapper"
)]

pub(crate) mod bytes;
pub(crate) mod objects;
mod syscall;

use std::{io, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull, slice, sync::atomic::AtomicU64};

use aya::{
    Pod,
    maps::{MapData, MapError, MapType},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use self::bytes::Bytes;

/// A BPF array made with BPF_F_MMAPABLE, shared with the programs that use it. Its values have at
/// most 8 bytes, each in a word of its own.
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
        // The kernel places each value at a multiple of 8 bytes.
        let is_words = matches!(info.map_type(), Ok(MapType::Array)) && info.value_size() as usize <= size_of::<u64>();
        let len = info.max_entries() as usize;
        let bytes = NonZeroUsize::new(len * size_of::<u64>());
        let (true, Some(bytes)) = (is_words, bytes) else {
            return Err(io::Error::other("not an array of values of at most 8 bytes"));
        };
        let (read_write, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses; it overlaps no memory of
        // ours.
        let start = unsafe { mmap(None, bytes, read_write, shared, map.fd().as_fd(), 0) }?;
        Ok(Self { start: start.cast(), len })
    }

    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `map` checked that the array holds `len` words of 8 bytes, the mapping is
        // page-aligned, and it lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and slices of it borrow `self`.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.len * size_of::<u64>()) } {
            tracing::error!(%error, "cannot unmap the memory of a BPF array");
        }
    }
}

/// Waits until every BPF program that is running now on any CPU has ended. This takes tens of
/// milliseconds.
pub fn membarrier_global() -> io::Result<()> {
    // SAFETY: a system call with integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The value with these bytes; `None` if their number is not the size of `T`.
pub fn value<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are as many bytes as `T` has, and Pod types are valid for any bytes.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Removes an entry of a hash map and returns its value, if it existed.
pub fn take<K: Pod, V: Pod>(map: &MapData, key: &K) -> Result<Option<V>, MapError> {
    let bytes = Bytes::of(map)?;
    if bytes.key != size_of::<K>() {
        return Err(MapError::InvalidKeySize { size: size_of::<K>(), expected: bytes.key });
    }
    if bytes.value != size_of::<V>() {
        return Err(MapError::InvalidValueSize { size: size_of::<V>(), expected: bytes.value });
    }
    // SAFETY: a Pod type has no padding, and as many bytes as its size says.
    let key = unsafe { slice::from_raw_parts(std::ptr::from_ref(key).cast::<u8>(), size_of::<K>()) };
    let mut found = vec![0; bytes.value];
    Ok(if bytes.take(key, &mut found)? { value(&found) } else { None })
}

/// Calls `visit` for every entry of an array or hash map. A per-CPU map has `cpus` values for each
/// key, other maps one. See [`Bytes::scan`].
pub fn scan<K: Pod, V: Pod>(map: &MapData, cpus: usize, mut visit: impl FnMut(&K, &[V])) -> Result<(), MapError> {
    let bytes = Bytes::of(map)?;
    let value = bytes.info.value_size() as usize;
    if bytes.key != size_of::<K>() {
        return Err(MapError::InvalidKeySize { size: size_of::<K>(), expected: bytes.key });
    }
    if value != size_of::<V>() || bytes.value != value * cpus {
        return Err(MapError::InvalidValueSize { size: size_of::<V>() * cpus, expected: bytes.value });
    }
    let mut values = Vec::with_capacity(cpus);
    bytes
        .scan(|key, value| {
            // SAFETY: as many bytes as a key has, and Pod types are valid for any bytes.
            let key = unsafe { key.as_ptr().cast::<K>().read_unaligned() };
            values.clear();
            // SAFETY: as above.
            values.extend(
                value.chunks_exact(size_of::<V>()).map(|one| unsafe { one.as_ptr().cast::<V>().read_unaligned() }),
            );
            visit(&key, &values);
        })
        .map_err(MapError::IoError)
}

/// The OS error number at the root of an error's source chain.
pub fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    number.or_else(|| errno(error.source()?))
}
