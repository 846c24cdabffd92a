//! The time of flow entries, read from the clock once in a jiffy on each CPU: a reading costs more
//! than a look-up.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::btf_map,
};

#[repr(C)]
struct Clock {
    jiffies: u64,
    boot_ns: u64,
}

#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// Nanoseconds of CLOCK_BOOTTIME, up to a jiffy (1 to 10 ms) ago.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    let Some(clock) = CLOCK.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU value: nobody else writes it while this program runs.
    let clock = unsafe { &mut *clock };
    // SAFETY: a helper without arguments; the verifier makes a load of it.
    let jiffies = unsafe { bpf_jiffies64() };
    if clock.jiffies != jiffies {
        clock.jiffies = jiffies;
        // SAFETY: a helper without arguments.
        clock.boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    }
    clock.boot_ns
}
