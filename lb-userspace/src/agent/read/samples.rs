//! Samples of the counters, which are taken only on request, and the rates between two samples.

use std::{
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{agent::handle::Rates, dataplane::stats::Sample};

/// Over a shorter time, rates would be too coarse.
const SHORTEST: Duration = Duration::from_secs(1);
/// Over a longer time, rates would not describe the present.
const LONGEST: Duration = Duration::from_secs(20);
/// The time between two samples if there is no earlier one to compare with.
const PAUSE: Duration = Duration::from_millis(250);

/// A sample, and an earlier one for rates.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    pub now: Option<Arc<Sample>>,
    pub before: Option<Arc<Sample>>,
}

/// The last samples. Rates are computed from `older` to the newest sample.
#[derive(Debug, Default)]
pub struct Samples {
    older: Option<Arc<Sample>>,
    newer: Option<Arc<Sample>>,
}

impl Samples {
    /// Takes a sample with `sample`, which returns `None` if the counters can't be read. For
    /// [`Rates::Measured`], takes two samples if there is no suitable earlier one.
    pub fn take(&mut self, rates: Rates, sample: impl Fn() -> Option<Sample>) -> Sampled {
        let Some(mut now) = sample().map(Arc::new) else { return Sampled::default() };
        self.move_on(now.at);
        if rates == Rates::Measured && self.older.is_none() {
            self.older = Some(now.clone());
            sleep(PAUSE);
            now = sample().map_or(now, Arc::new);
        }
        let before = self.older.clone();
        self.newer = Some(now.clone());
        Sampled { now: Some(now), before }
    }

    /// Pairs `now`, a sample of some services, with the last sample of all services whose age suits
    /// a rate.
    pub fn beside(&self, now: Option<Sample>) -> Sampled {
        let Some(now) = now else { return Sampled::default() };
        let age = |sample: &Sample| now.at.saturating_duration_since(sample.at);
        let mut before = [&self.newer, &self.older].into_iter().flatten();
        let before = before.find(|sample| (SHORTEST..=LONGEST).contains(&age(sample))).cloned();
        Sampled { now: Some(now.into()), before }
    }

    /// Replaces or drops the older sample, so that a rate from it to `now` is neither too coarse
    /// nor too old.
    fn move_on(&mut self, now: Instant) {
        let age = |sample: &Sample| now.saturating_duration_since(sample.at);
        if self.newer.as_ref().is_some_and(|newer| age(newer) >= SHORTEST) {
            self.older = self.newer.take();
        }
        if self.older.as_ref().is_some_and(|older| age(older) > LONGEST) {
            self.older = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use super::*;

    fn sample(at: Instant) -> Sample {
        Sample {
            at,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_are_over_the_time_since_the_last_query_if_that_is_neither_too_short_nor_too_long() {
        let begun = Instant::now();
        let at = Cell::new(begun);
        let mut samples = Samples::default();
        let mut ask = |rates, millis| {
            at.set(begun + Duration::from_millis(millis));
            let Sampled { now, before } = samples.take(rates, || Some(sample(at.get())));
            before.map(|before| now.unwrap().at.saturating_duration_since(before.at).as_millis())
        };
        assert_eq!(ask(Rates::Known, 0), None);
        assert_eq!(ask(Rates::Known, 400), None, "too short a time");
        assert_eq!(ask(Rates::Known, 1500), Some(1100));
        assert_eq!(ask(Rates::Known, 1900), Some(1500), "the same earlier sample");
        assert_eq!(ask(Rates::Known, 4000), Some(2100));
        assert_eq!(ask(Rates::Known, 60_000), None, "nobody had asked for long");
    }

    #[test]
    fn sample_of_some_services_is_compared_with_the_last_one_of_all_that_is_neither_too_young_nor_too_old() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut samples = Samples::default();
        let age = |samples: &Samples, millis| {
            let Sampled { now, before } = samples.beside(Some(sample(at(millis))));
            before.map(|before| now.unwrap().at.saturating_duration_since(before.at).as_millis())
        };
        assert_eq!(age(&samples, 0), None);
        for millis in [0, 1500] {
            samples.take(Rates::Known, || Some(sample(at(millis))));
        }
        assert_eq!(age(&samples, 1900), Some(1900), "the newer one is too young");
        assert_eq!(age(&samples, 4000), Some(2500));
        assert_eq!(age(&samples, 60_000), None, "nobody had asked for long");
    }

    #[test]
    fn rates_that_must_be_measured_are_measured_over_a_short_time() {
        let mut samples = Samples::default();
        let Sampled { now, before } = samples.take(Rates::Measured, || Some(sample(Instant::now())));
        assert!(now.unwrap().at.saturating_duration_since(before.unwrap().at) >= PAUSE);
    }
}
