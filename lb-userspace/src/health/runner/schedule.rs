//! When each target is probed next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::state::Health;

/// Identifies a target from when it is added until it is removed; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key(u64);

/// New targets of unknown health are probed at this pace, so that a few targets get their verdict
/// at once and thousands don't cause one burst.
const FIRST_PACE: Duration = Duration::from_millis(1);
/// The gap between two probes, as a share of the interval. The upper end leaves a little time for
/// timers and for the agent's own work.
const GAP: (f64, f64) = (0.90, 0.98);

#[derive(Default)]
pub(super) struct Schedule {
    due: BTreeSet<(Instant, Key)>,
    entries: BTreeMap<Key, ScheduledProbe>,
    last_key: u64,
}

struct ScheduledProbe {
    due: Instant,
    /// The target's probes have not been spread over the interval yet.
    bunched: bool,
}

impl Schedule {
    /// Adds one of `count` targets that are added together. If its health is already known, its
    /// first probe is spread over the interval.
    pub(super) fn add(&mut self, now: Instant, interval: Duration, health: Health, count: usize) -> Key {
        self.last_key += 1;
        let key = Key(self.last_key);
        let bunched = health == Health::Unknown;
        let pace = FIRST_PACE.saturating_mul(u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX));
        let spread = if bunched { interval.min(pace) } else { interval.mul_f64(GAP.1) };
        self.put(key, ScheduledProbe { due: now + spread.mul_f64(fastrand::f64()), bunched });
        key
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.due.remove(&(entry.due, key));
        }
    }

    /// Moves the next probe forward if the interval has become shorter.
    pub(super) fn bring_forward(&mut self, key: Key, now: Instant, interval: Duration) {
        if let Some(&ScheduledProbe { due, bunched }) = self.entries.get(&key) {
            let latest = now + gap(interval, false);
            if due > latest {
                self.remove(key);
                self.put(key, ScheduledProbe { due: latest, bunched });
            }
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes the target that has been due longest, and returns how late it is; `None` if no target
    /// is due. The target's entry is kept for [`Self::put_next`].
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Key, Duration)> {
        let (due, key) = *self.due.first().filter(|(due, _)| *due <= now)?;
        self.due.remove(&(due, key));
        Some((key, now - due))
    }

    /// A probe has started: schedules the next one within the interval.
    pub(super) fn put_next(&mut self, key: Key, now: Instant, interval: Duration) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let next = now + gap(interval, std::mem::take(&mut entry.bunched));
        let before = std::mem::replace(&mut entry.due, next);
        self.due.remove(&(before, key));
        self.due.insert((next, key));
    }

    fn put(&mut self, key: Key, entry: ScheduledProbe) {
        self.due.insert((entry.due, key));
        self.entries.insert(key, entry);
    }
}

/// A random gap, never longer than the interval: the time until a dead backend is marked down
/// depends on it. The first gap of a target that was started together with others may be much
/// shorter, to spread these targets.
fn gap(interval: Duration, bunched: bool) -> Duration {
    let (shortest, longest) = GAP;
    let shortest = if bunched { shortest / 4.0 } else { shortest };
    interval.mul_f64(shortest + (longest - shortest) * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn gaps_are_jittered_and_never_longer_than_the_interval() {
        let mut schedule = Schedule::default();
        let mut now = Instant::now();
        let key = schedule.add(now, INTERVAL, Health::Up, 1);
        schedule.put_next(key, now, INTERVAL);
        let mut gaps = BTreeSet::new();
        for _ in 0..500 {
            let due = schedule.next().unwrap();
            gaps.insert(due - now);
            now = due;
            assert_eq!(schedule.take_due(now), Some((key, Duration::ZERO)));
            schedule.put_next(key, now, INTERVAL);
        }
        assert!(gaps.len() > 400, "{} different gaps", gaps.len());
        assert!(*gaps.first().unwrap() >= INTERVAL.mul_f64(0.9));
        assert!(*gaps.last().unwrap() < INTERVAL);
    }

    #[test]
    fn known_targets_start_spread_over_the_interval() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        for _ in 0..4000 {
            schedule.add(now, INTERVAL, Health::Up, 4000);
        }
        assert_spread_evenly(&schedule, now);
    }

    #[test]
    fn lone_unknown_target_is_probed_at_once_and_many_are_spread_by_their_second_probe() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        let key = schedule.add(now, INTERVAL, Health::Unknown, 1);
        assert_eq!(schedule.take_due(now), Some((key, Duration::ZERO)));
        schedule.remove(key);
        for _ in 0..4000 {
            let key = schedule.add(now, INTERVAL, Health::Unknown, 1);
            schedule.put_next(key, now, INTERVAL);
        }
        let early = schedule.due.iter().filter(|(due, _)| *due - now < INTERVAL.mul_f64(0.6)).count();
        assert!((1600..2400).contains(&early), "{early} of 4000 in the first 60 %");
    }

    #[test]
    fn shorter_interval_brings_the_next_probe_forward_and_a_longer_one_does_not_delay_it() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        let key = schedule.add(now, INTERVAL, Health::Up, 1);
        schedule.put_next(key, now, INTERVAL);
        let due = schedule.next();
        schedule.bring_forward(key, now, INTERVAL * 10);
        assert_eq!(schedule.next(), due);
        schedule.bring_forward(key, now, INTERVAL / 10);
        assert!(schedule.next().unwrap() <= now + INTERVAL / 10);
        schedule.remove(key);
        assert_eq!((schedule.next(), schedule.entries.len()), (None, 0));
    }

    fn assert_spread_evenly(schedule: &Schedule, now: Instant) {
        let tenths = schedule.due.iter().map(|(due, _)| (*due - now).div_duration_f64(INTERVAL) * 10.0);
        let mut counts = [0; 10];
        for tenth in tenths {
            counts[tenth as usize] += 1;
        }
        assert!(counts.iter().all(|count| (250..550).contains(count)), "{counts:?}");
    }
}
