//! The time since which a slot's owners differ, in the map `SLOT_TIMES`: tenths of a second of
//! CLOCK_BOOTTIME, which 32 bits hold for thirteen years.

/// Converts a time to the unit of `SLOT_TIMES`; never returns 0, which means "not set".
pub fn deciseconds(now_ns: u64) -> u32 {
    u32::try_from(now_ns / 100_000_000).unwrap_or(u32::MAX).max(1)
}

/// How long the owners of a slot with this clock have differed; `None` if the clock is not set or
/// dates from before a reboot.
pub fn elapsed_ns(clock: u32, now_ns: u64) -> Option<u64> {
    let elapsed = deciseconds(now_ns).checked_sub(clock)?;
    (clock != 0).then_some(u64::from(elapsed) * 100_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_clock_counts_tenths_of_seconds_and_one_that_was_never_set_or_lies_ahead_is_not_believed() {
        assert_eq!(elapsed_ns(deciseconds(5 * SECOND), 7 * SECOND), Some(2 * SECOND));
        assert_eq!(elapsed_ns(deciseconds(0), 0), Some(0));
        assert_eq!(elapsed_ns(0, 7 * SECOND), None);
        assert_eq!(elapsed_ns(deciseconds(8 * SECOND), 7 * SECOND), None);
    }
}
