//! Kernel interfaces that aya does not expose: the BTF types of a map's entries, and replacing the
//! program of a link.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use aya::maps::MapData;
use aya_obj::generated::{bpf_btf_info, bpf_map_info};

use super::syscall::bpf;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_BTF_GET_FD_BY_ID: libc::c_long = 19;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The map's BTF, and the ids in it of the key and value types; 0 is none.
pub struct MapTypes {
    pub btf: Vec<u8>,
    pub key: u32,
    pub value: u32,
}

/// The BTF types of the map; `None` if it was made without BTF. Fails with EPERM without
/// CAP_SYS_ADMIN.
pub fn map_types(map: &MapData) -> io::Result<Option<MapTypes>> {
    // SAFETY: integers only.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is what the kernel writes for a map.
    unsafe { object_info(map.fd().as_fd().as_raw_fd(), &mut info) }?;
    if info.btf_id == 0 {
        return Ok(None);
    }
    let mut attr = [info.btf_id, 0, 0, 0];
    // SAFETY: integers only.
    let fd = unsafe { bpf(BPF_BTF_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel has just opened this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut btf = Vec::new();
    loop {
        // SAFETY: the structure has integers only; the next lines set the pointer.
        let mut info: bpf_btf_info = unsafe { std::mem::zeroed() };
        (info.btf, info.btf_size) = (btf.as_mut_ptr() as u64, btf.len() as u32);
        // SAFETY: `info` is what the kernel writes for BTF, and `btf` has the room that it says.
        unsafe { object_info(fd.as_raw_fd(), &mut info) }?;
        if info.btf_size as usize <= btf.len() {
            btf.truncate(info.btf_size as usize);
            break;
        }
        btf.resize(info.btf_size as usize, 0);
    }
    Ok(Some(MapTypes { btf, key: info.btf_key_type_id, value: info.btf_value_type_id }))
}

/// # Safety
/// `T` must be the kernel's info structure for this kind of object, made of integers only; its
/// pointers must point to buffers of the sizes that it states.
unsafe fn object_info<T>(fd: i32, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct InfoAttr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut attr = InfoAttr { fd: fd as u32, info_len: size_of::<T>() as u32, info: std::ptr::from_mut(info) as u64 };
    // SAFETY: the kernel writes at most `info_len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// Opens a pinned object: a map, a program or a link.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct PathAttr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path ends with a zero byte and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A link, held open.
pub struct Link(OwnedFd);

impl Link {
    /// Opens the link pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        open_pinned(path).map(Self)
    }

    /// Replaces the link's program atomically: a packet meets either the old or the new one.
    /// ENOLINK: the link is not attached anywhere.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = [self.0.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
        // SAFETY: integers only.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Detaches the link now, even if other processes hold it open. No error if it is not attached.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = [self.0.as_raw_fd() as u32];
        // SAFETY: integers only.
        match unsafe { bpf(BPF_LINK_DETACH, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            result => result.map(drop),
        }
    }
}
