//! Atomic read-modify-write on map values. The BPF target has it only as compiler intrinsics
//! (`core::sync::atomic` has none there).

#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd};

/// # Safety
/// `word` must point at a live map value.
#[inline(always)]
pub unsafe fn or(word: *mut u32, bits: u32) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(target_arch = "bpf")]
        let _old = atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(word, bits);
        #[cfg(not(target_arch = "bpf"))]
        let _old = core::sync::atomic::AtomicU32::from_ptr(word).fetch_or(bits, core::sync::atomic::Ordering::Relaxed);
    }
}

/// # Safety
/// `word` must point at a live map value.
#[inline(always)]
pub unsafe fn or64(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(target_arch = "bpf")]
        let _old = atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(word, bits);
        #[cfg(not(target_arch = "bpf"))]
        let _old = core::sync::atomic::AtomicU64::from_ptr(word).fetch_or(bits, core::sync::atomic::Ordering::Relaxed);
    }
}

/// # Safety
/// `word` must point at a live map value.
#[inline(always)]
pub unsafe fn and(word: *mut u32, bits: u32) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(target_arch = "bpf")]
        let _old = atomic_and::<u32, u32, { AtomicOrdering::Relaxed }>(word, bits);
        #[cfg(not(target_arch = "bpf"))]
        let _old = core::sync::atomic::AtomicU32::from_ptr(word).fetch_and(bits, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Writes `new` if the word is still `old`; whether it was.
///
/// # Safety
/// `word` must point at a live map value.
#[inline(always)]
pub unsafe fn replace(word: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(target_arch = "bpf")]
        return atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1;
        #[cfg(not(target_arch = "bpf"))]
        return core::sync::atomic::AtomicU32::from_ptr(word)
            .compare_exchange(old, new, core::sync::atomic::Ordering::Relaxed, core::sync::atomic::Ordering::Relaxed)
            .is_ok();
    }
}

/// The value before one was added.
///
/// # Safety
/// `word` must point at a live map value.
#[inline(always)]
pub unsafe fn count_up(word: *mut u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        // Relaxed, LLVM makes of it the `lock +=` that fetches nothing, and takes what was added
        // for the old value.
        #[cfg(target_arch = "bpf")]
        return atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, 1);
        #[cfg(not(target_arch = "bpf"))]
        return core::sync::atomic::AtomicU64::from_ptr(word).fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }
}
