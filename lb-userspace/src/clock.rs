//! The clocks of the agent: Unix time for people and documents, boot time for the maps, CPU time
//! for work whose share of a CPU is limited.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_BOOTTIME, the clock of every time in the maps.
pub fn boottime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or(0)
}

/// The CPU time that this thread has used.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> f64 {
    unix(SystemTime::now())
}

/// A time as seconds since the Unix epoch; zero for a time before it.
pub fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A time as nanoseconds since the Unix epoch; zero for a time before it.
pub fn unix_ns(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
