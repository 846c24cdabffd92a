//! The heap of the C library, if that is glibc. With another library, these functions do nothing.
#![expect(unsafe_code, reason = "two functions of glibc that no library wraps")]

/// Makes all threads share a few heaps. By default each thread gets a heap of its own, and memory
/// that a reload or a scrape has freed in one heap is not used by other threads.
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
    // SAFETY: takes an integer, and locks the heaps itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
