//! bpf(2).

use std::io;

/// bpf(2); returns its result, or the error.
///
/// # Safety
/// `attr` must be the attributes of `command`, and its pointers must point to buffers of the sizes
/// that the kernel expects.
pub unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller guarantees it, as above.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
