//! The heap of the C library, if that is glibc; others have nothing to set.
#![expect(unsafe_code, reason = "two functions of glibc that no library wraps")]

/// Makes all threads share a few heaps. By default each gets one of its own, and what a reload or a
/// scrape leaves free in one serves no other thread.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers, and changes a setting of the allocator under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 4);
    }
}

/// Gives free memory back to the kernel. Takes some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and the locks of the heaps itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
