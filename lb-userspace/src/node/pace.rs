//! When to examine a part of the machine again: soon after an announcement, after the poll interval
//! without one, and never so often that it keeps a core busy. One examination is called a look;
//! each look must be followed by a rest.

use std::time::Duration;

use tokio::time::Instant;

/// When the next look at one part of the machine is due.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    due: Instant,
    /// An announcement does not cause a look before this time.
    rests_until: Instant,
    /// When the rests after all looks so far will be over, including rests that were put off.
    rested_at: Instant,
}

/// The rest after a look lasts this many times as long as the look: in a storm of announcements,
/// looks take a tenth of the time.
const REST: u32 = 9;
/// The shortest rest after a look, because announcements come in groups.
const LEAST_REST: Duration = Duration::from_millis(100);
/// This much rest can be put off until after later looks. Otherwise a slow repair, whose own
/// announcements cause one more look, would delay the look at the next change for seconds.
const PUT_OFF: Duration = Duration::from_secs(10);

impl Pace {
    /// Due at once.
    pub const fn new(now: Instant) -> Self {
        Self { due: now, rests_until: now, rested_at: now }
    }

    /// After an announcement: due as soon as the rest is over.
    pub fn ask(&mut self, now: Instant) {
        self.due = self.due.min(now.max(self.rests_until));
    }

    /// When a caller waits for the look: due at once.
    pub fn insist(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    pub const fn due(&self) -> Instant {
        self.due
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// Records a look that took from `begun` to `ended`. Without an announcement, the next look is
    /// due after `poll`.
    pub fn looked(&mut self, begun: Instant, ended: Instant, poll: Duration) {
        let took = ended.saturating_duration_since(begun);
        let rested_at = self.rested_at.max(begun) + took * (1 + REST);
        // Limit the rest that is put off, because looks after `insist` and at a poll do not wait
        // for it.
        self.rested_at = rested_at.min(ended + took * REST + PUT_OFF);
        let put_off = self.rested_at.checked_sub(PUT_OFF).unwrap_or(ended);
        self.rests_until = put_off.max(ended + LEAST_REST);
        self.due = ended + poll;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(60);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn first_announcement_after_a_rest_waits_for_nothing() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.is_due(start));
        pace.looked(start, start + ms(5), POLL);
        assert_eq!(pace.due(), start + ms(5) + POLL);
        let later = start + ms(2000);
        pace.ask(later);
        assert_eq!(pace.due(), later);
    }

    #[test]
    fn one_change_after_the_other_does_not_wait_even_where_looks_are_slow() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for change in 0..3 {
            // The change, and what the repair announces of itself.
            for _ in 0..2 {
                pace.ask(now);
                let begun = pace.due().max(now);
                assert!(begun <= now + LEAST_REST, "change {change} waits for {:?}", begun - now);
                now = begun + ms(180);
                pace.looked(begun, now, POLL);
            }
            now += ms(500);
        }
    }

    #[test]
    fn storm_gets_a_second_at_once_and_then_a_tenth_of_the_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut looking) = (start, Duration::ZERO);
        while now < start + Duration::from_secs(60) {
            pace.ask(now);
            if pace.is_due(now) {
                pace.looked(now, now + ms(200), POLL);
                looking += ms(200);
                now += ms(200);
            }
            now += ms(1);
        }
        assert!((ms(6600)..=ms(7200)).contains(&looking), "{looking:?}");
    }

    #[test]
    fn slow_looks_by_the_poll_are_forgotten_once_looks_are_quick_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..100 {
            pace.looked(now, now + ms(2000), Duration::from_secs(5));
            now += ms(7000);
        }
        let quick = now + ms(20_000);
        pace.looked(quick, quick + ms(5), POLL);
        pace.ask(quick + ms(200));
        assert_eq!(pace.due(), quick + ms(200));
    }

    #[test]
    fn slow_look_does_not_hold_back_the_poll_nor_a_person() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let ended = start + Duration::from_secs(3);
        pace.looked(start, ended, Duration::from_secs(5));
        assert!(pace.rests_until > ended + Duration::from_secs(5));
        pace.ask(ended + ms(1));
        assert_eq!(pace.due(), ended + Duration::from_secs(5));
        pace.insist(ended + ms(2));
        assert!(pace.is_due(ended + ms(2)));
    }
}
