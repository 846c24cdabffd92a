//! Derives a backend's health from its probe results. Pure; there is one machine for each backend.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use super::probe::{FailureKind, Outcome};
use crate::{model::HealthCheck, state::Health};

/// The result of one completed probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// When the probe started. Probes may overlap, and end in a different order.
    pub began: Instant,
    pub outcome: Outcome,
}

/// How many consecutive successes (`rise`) or failures (`fall`) make a verdict; zero counts as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thresholds {
    pub rise: u32,
    pub fall: u32,
}

impl From<&HealthCheck> for Thresholds {
    fn from(check: &HealthCheck) -> Self {
        Self { rise: check.rise, fall: check.fall }
    }
}

/// A verdict that differs from the previous one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthChange {
    pub from: Health,
    pub to: Health,
    /// The result of the last probe, as text.
    pub reason: Cow<'static, str>,
    /// How many consecutive probes had the same kind of result, success or failure.
    pub consecutive: u32,
    pub at: SystemTime,
}

/// A backend's health and probe history, for display.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HealthView {
    pub health: Health,
    pub last_check: Option<SystemTime>,
    pub last_duration: Option<Duration>,
    /// `None` while the machine still has its initial health.
    pub last_change: Option<SystemTime>,
    /// The result of the last probe, as text; empty before the first probe.
    pub reason: Cow<'static, str>,
    /// Failed probes, by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// How often the health changed, the first verdict included.
    pub changes: u64,
}

/// A backend's health, and the recent probe results that determine it.
#[derive(Clone, Debug)]
pub struct Machine {
    view: HealthView,
    successes: Streak,
    failures: Streak,
    /// Number of consecutive failures, up to the latest, in which nothing answered at all.
    silences: u32,
}

/// Results of one kind (success or failure) since the last result of the other kind.
#[derive(Clone, Debug, Default)]
struct Streak {
    length: u32,
    /// When the most recently started probe with this kind of result started.
    newest: Option<Instant>,
}

impl Machine {
    /// Starts with the health known from before a restart of the agent, or with `Unknown`.
    pub fn new(initial: Health) -> Self {
        Self {
            view: HealthView { health: initial, ..HealthView::default() },
            successes: Streak::default(),
            failures: Streak::default(),
            silences: 0,
        }
    }

    pub fn view(&self) -> &HealthView {
        &self.view
    }

    /// Takes one result into account. From `Unknown`, a single success is enough for `Up`. `Down`
    /// always takes `fall` failures, and `Dead` takes `fall` failures in which nothing answered.
    /// The first answer of any kind from a dead backend makes it `Down`, unless it is enough for
    /// `Up`.
    ///
    /// Two kinds of results are recorded, but do not affect the health: a result that a
    /// later-started probe has already contradicted is out of date, and a probe that this node
    /// could not even start says nothing about the backend.
    pub fn observe(
        &mut self,
        observation: &Observation,
        thresholds: Thresholds,
        now: SystemTime,
    ) -> Option<HealthChange> {
        self.note(&observation.outcome, now);
        let (is_success, is_silent) = match &observation.outcome {
            Outcome::Ok { .. } => (true, false),
            Outcome::Failed { reason: FailureKind::Local, .. } => return None,
            Outcome::Failed { is_silent, .. } => (false, *is_silent),
        };
        let (streak, opposite) = match is_success {
            true => (&mut self.successes, &mut self.failures),
            false => (&mut self.failures, &mut self.successes),
        };
        if opposite.newest.is_some_and(|newest| newest > observation.began) {
            return None;
        }
        opposite.length = 0;
        streak.length = streak.length.saturating_add(1);
        streak.newest = streak.newest.max(Some(observation.began));
        let consecutive = streak.length;
        self.silences = if is_silent { self.silences.saturating_add(1) } else { 0 };
        let to = match (is_success, self.view.health) {
            (true, Health::Unknown) => Health::Up,
            (true, _) if consecutive >= thresholds.rise => Health::Up,
            (false, _) if self.silences >= thresholds.fall.max(1) => Health::Dead,
            (_, Health::Dead) if !is_silent => Health::Down,
            (false, Health::Unknown | Health::Up) if consecutive >= thresholds.fall => Health::Down,
            (_, same) => same,
        };
        if self.view.health == to {
            return None;
        }
        let from = std::mem::replace(&mut self.view.health, to);
        self.view.last_change = Some(now);
        self.view.changes += 1;
        Some(HealthChange { from, to, reason: self.view.reason.clone(), consecutive, at: now })
    }

    fn note(&mut self, outcome: &Outcome, now: SystemTime) {
        self.view.last_check = Some(now);
        self.view.last_duration = Some(outcome.duration());
        self.view.reason.clone_from(outcome.detail());
        if let Outcome::Failed { reason, .. } = outcome {
            *self.view.failures.entry(*reason).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO_OF_EACH: Thresholds = Thresholds { rise: 2, fall: 2 };

    fn success() -> Outcome {
        Outcome::Ok { duration: Duration::from_millis(3), detail: "connected".into() }
    }

    fn failure(reason: FailureKind) -> Outcome {
        let detail = reason.name().into();
        Outcome::Failed { duration: Duration::from_millis(4), reason, is_silent: false, detail }
    }

    fn silence() -> Outcome {
        let detail = "no answer".into();
        let (duration, reason) = (Duration::from_secs(1), FailureKind::Timeout);
        Outcome::Failed { duration, reason, is_silent: true, detail }
    }

    fn result(ok: bool) -> Outcome {
        if ok { success() } else { failure(FailureKind::Refused) }
    }

    /// Feeds results one second apart, and returns the health after each.
    fn healths(
        machine: &mut Machine,
        thresholds: Thresholds,
        outcomes: impl IntoIterator<Item = Outcome>,
    ) -> Vec<Health> {
        let start = Instant::now();
        let feed = |(at, outcome)| {
            let observation = Observation { began: start + Duration::from_secs(at), outcome };
            machine.observe(&observation, thresholds, SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            machine.view().health
        };
        (0..).zip(outcomes).map(feed).collect()
    }

    #[test]
    fn first_success_makes_an_unknown_backend_up() {
        let thresholds = Thresholds { rise: 5, fall: 3 };
        assert_eq!(healths(&mut Machine::new(Health::Unknown), thresholds, [success()]), [Health::Up]);
    }

    #[test]
    fn unknown_backend_is_down_after_fall_failures() {
        let outcomes = [false, false, false].map(result);
        let seen = healths(&mut Machine::new(Health::Unknown), Thresholds { rise: 1, fall: 3 }, outcomes);
        assert_eq!(seen, [Health::Unknown, Health::Unknown, Health::Down]);
    }

    #[test]
    fn backend_that_was_down_before_a_restart_needs_rise_successes() {
        let seen = healths(&mut Machine::new(Health::Down), TWO_OF_EACH, [true, true].map(result));
        assert_eq!(seen, [Health::Down, Health::Up]);
    }

    #[test]
    fn backend_is_dead_when_nothing_answered_in_all_of_the_last_failures_and_down_once_anything_does() {
        use Health::{Dead, Down, Unknown, Up};
        let (ok, no, hush) = (success, || result(false), silence);
        for (start, outcomes, expected) in [
            (Up, vec![hush(), hush()], vec![Up, Dead]),
            (Unknown, vec![hush(), hush()], vec![Unknown, Dead]),
            (Up, vec![hush(), no(), hush(), hush()], vec![Up, Down, Down, Dead]),
            (Down, vec![hush(), hush()], vec![Down, Dead]),
            (Dead, vec![hush(), no(), hush()], vec![Dead, Down, Down]),
            (Dead, vec![ok(), hush(), hush()], vec![Down, Down, Dead]),
            (Dead, vec![ok(), ok()], vec![Down, Up]),
            (Dead, vec![failure(FailureKind::Local)], vec![Dead]),
        ] {
            assert_eq!(healths(&mut Machine::new(start), TWO_OF_EACH, outcomes.clone()), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn view_tells_the_last_check_and_counts_failures_by_kind() {
        let mut machine = Machine::new(Health::Up);
        let outcomes = [failure(FailureKind::Timeout), failure(FailureKind::Refused), failure(FailureKind::Refused)];
        healths(&mut machine, TWO_OF_EACH, outcomes);
        let expected = HealthView {
            health: Health::Down,
            last_check: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)),
            last_duration: Some(Duration::from_millis(4)),
            last_change: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
            reason: "refused".into(),
            failures: BTreeMap::from([(FailureKind::Timeout, 1), (FailureKind::Refused, 2)]),
            changes: 1,
        };
        assert_eq!(machine.view(), &expected);
    }

    #[test]
    fn change_says_what_was_seen_and_how_often() {
        let mut machine = Machine::new(Health::Up);
        let observation = Observation { began: Instant::now(), outcome: result(false) };
        assert_eq!(machine.observe(&observation, TWO_OF_EACH, SystemTime::UNIX_EPOCH), None);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let change = HealthChange { from: Health::Up, to: Health::Down, reason: "refused".into(), consecutive: 2, at };
        assert_eq!(machine.observe(&observation, TWO_OF_EACH, at), Some(change));
    }

    #[test]
    fn failure_of_an_older_probe_does_not_undo_a_newer_success() {
        let mut machine = Machine::new(Health::Down);
        let start = Instant::now();
        let mut feed = |began: u64, ok| {
            let observation = Observation { began: start + Duration::from_secs(began), outcome: result(ok) };
            machine.observe(&observation, TWO_OF_EACH, SystemTime::UNIX_EPOCH);
            machine.view().health
        };
        // The backend is back from second 5 on; probes that started earlier hang until their
        // time-out.
        assert_eq!(feed(5, true), Health::Down);
        assert_eq!(feed(4, false), Health::Down);
        assert_eq!(feed(6, true), Health::Up);
    }

    #[test]
    fn trouble_of_this_node_is_no_verdict_on_the_backend() {
        let mut machine = Machine::new(Health::Up);
        let local = std::iter::repeat_with(|| failure(FailureKind::Local)).take(5);
        assert_eq!(healths(&mut machine, TWO_OF_EACH, local), [Health::Up; 5]);
        assert_eq!(machine.view().failures, BTreeMap::from([(FailureKind::Local, 5)]));
    }

    #[test]
    fn thresholds_can_change_without_touching_the_health() {
        let mut machine = Machine::new(Health::Up);
        assert_eq!(healths(&mut machine, Thresholds { rise: 1, fall: 9 }, [result(false)]), [Health::Up]);
        assert_eq!(healths(&mut machine, Thresholds { rise: 1, fall: 2 }, [result(false)]), [Health::Down]);
    }

    fn initial() -> impl Strategy<Value = Health> {
        prop_oneof![Just(Health::Unknown), Just(Health::Up), Just(Health::Down)]
    }

    proptest! {
        #[test]
        fn health_changes_exactly_when_the_last_results_agree_often_enough(
            start in initial(),
            rise in 1..6_u32,
            fall in 1..6_u32,
            results in proptest::collection::vec(any::<bool>(), 1..60),
        ) {
            let results_in_turn = results.iter().copied().map(result);
            let seen = healths(&mut Machine::new(start), Thresholds { rise, fall }, results_in_turn);
            let mut expected = start;
            for (at, health) in seen.iter().enumerate() {
                let like = results[..=at].iter().rev().take_while(|ok| **ok == results[at]).count() as u32;
                expected = match (results[at], expected) {
                    (true, Health::Unknown) => Health::Up,
                    (true, _) if like >= rise => Health::Up,
                    (false, _) if like >= fall => Health::Down,
                    (_, same) => same,
                };
                prop_assert_eq!(*health, expected, "after result {}", at);
            }
        }

        #[test]
        fn every_change_is_reported_once_and_counted(
            start in initial(),
            rise in 1..4_u32,
            fall in 1..4_u32,
            results in proptest::collection::vec(any::<bool>(), 1..60),
        ) {
            let mut machine = Machine::new(start);
            let began = Instant::now();
            let mut health = start;
            let mut changes = 0;
            for (at, ok) in (0..).zip(results) {
                let observation = Observation { began: began + Duration::from_secs(at), outcome: result(ok) };
                if let Some(change) = machine.observe(&observation, Thresholds { rise, fall }, SystemTime::UNIX_EPOCH) {
                    prop_assert_eq!(change.from, health);
                    prop_assert_ne!(change.to, health);
                    health = change.to;
                    changes += 1;
                }
                prop_assert_eq!(machine.view().health, health);
                prop_assert_eq!(machine.view().changes, changes);
            }
        }
    }
}
