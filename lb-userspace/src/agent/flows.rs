//! Repeatedly counts the flows, and removes those that are over, on a blocking thread.

use std::{path::Path, time::Duration};

use lb_common::nat::NatTimeouts;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::passes::{Ended, Passes};
use crate::{
    clock::boottime_ns,
    dataplane::{
        maps::MapsError,
        plan::FlowUse,
        tables::nat::{FlowCensus, NatTables},
    },
};

/// The result of the last complete pass.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// When the pass began, in CLOCK_BOOTTIME; 0 if there was no pass yet.
    pub began_ns: u64,
    pub census: FlowCensus,
}

impl Counted {
    pub fn in_use(&self) -> FlowUse {
        FlowUse {
            scanned_at_ns: self.began_ns,
            backends: self.census.named.clone(),
            busy: self.census.busy.clone(),
            busy_vips: self.census.busy_vips.clone(),
            vips: self.census.vips.keys().copied().collect(),
            snat: self.census.sources.clone(),
        }
    }
}

/// What the owner of the maps requires of the passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WantedPasses {
    pub timeouts: NatTimeouts,
    /// Whether a drain waits for its flows to end.
    pub is_awaited: bool,
}

/// The task's results, and how often they are needed.
pub struct Flows {
    pub census: watch::Receiver<Counted>,
    /// The passes begin once this channel has a value.
    pub passes: watch::Sender<Option<WantedPasses>>,
    /// When somebody last asked for counts of connections.
    pub looked_at: watch::Sender<Option<Instant>>,
}

/// Starts the task on the current runtime.
pub fn start(pin_dir: &Path, shutdown: CancellationToken) -> Result<Flows, MapsError> {
    let tables = NatTables::open(pin_dir)?;
    let (publish, census) = watch::channel(Counted::default());
    let (passes, told) = watch::channel(None);
    let (looked_at, looks) = watch::channel(None);
    tokio::spawn(run(tables, publish, PassesNeeded { told, looks }, shutdown));
    Ok(Flows { census, passes, looked_at })
}

/// How soon the next pass is needed.
struct PassesNeeded {
    told: watch::Receiver<Option<WantedPasses>>,
    looks: watch::Receiver<Option<Instant>>,
}

impl PassesNeeded {
    /// Whether somebody waits for the next pass: a drain, or a person.
    fn is_urgent(&self) -> bool {
        let is_looked_at = self.looks.borrow().is_some_and(|at| at.elapsed() < ATTENTION);
        is_looked_at || self.told.borrow().is_some_and(|passes| passes.is_awaited)
    }

    /// Waits until the next pass is due, after one that took `took`.
    async fn wait(&mut self, took: Duration) {
        let ended = Instant::now();
        loop {
            let pause = pause(took, self.is_urgent() || self.told.borrow().is_none());
            tokio::select! {
                () = sleep_until(ended + pause) => return,
                Ok(()) = self.told.changed() => {}
                Ok(()) = self.looks.changed() => {}
            }
        }
    }
}

const PAUSE: Duration = Duration::from_millis(500);
/// Pause this many times as long as the last pass took, to cap CPU use: below 10 % of a core while
/// somebody waits for the result, else a fifth of a percent.
const PAUSES_PER_URGENT_PASS: u32 = 10;
const PAUSES_PER_PASS: u32 = 500;
/// The maximum pause, however long a pass takes, so that every entry is checked about once a
/// minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(50);
/// How long passes stay frequent after somebody has asked for counts.
const ATTENTION: Duration = Duration::from_secs(10);

fn pause(took: Duration, is_urgent: bool) -> Duration {
    let pauses = if is_urgent { PAUSES_PER_URGENT_PASS } else { PAUSES_PER_PASS };
    (took * pauses).clamp(PAUSE, LONGEST_PAUSE)
}

async fn run(tables: NatTables, publish: watch::Sender<Counted>, mut need: PassesNeeded, shutdown: CancellationToken) {
    let mut passes = Passes::new(
        tables,
        "cannot count the flows; it is tried again",
        "the pass over the flow tables has failed; drains end by their time-outs alone",
    );
    loop {
        let wanted = *need.told.borrow();
        if let Some(WantedPasses { timeouts, .. }) = wanted {
            let began_ns = boottime_ns();
            match passes.pass(move |tables| tables.collect(began_ns, &timeouts)).await {
                Ok(Some(census)) => drop(publish.send_replace(Counted { began_ns, census })),
                Ok(None) => {}
                Err(Ended) => return,
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = need.wait(passes.took()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_a_fifth_of_a_percent_of_a_core_unless_somebody_waits_for_them() {
        let took = Duration::from_millis(20);
        assert_eq!(pause(took, false), Duration::from_secs(10));
        assert_eq!(pause(took, true), PAUSE);
        assert_eq!(pause(Duration::from_millis(1), false), PAUSE, "never without a pause");
        assert_eq!(pause(Duration::from_secs(2), false), LONGEST_PAUSE, "every entry is looked at within a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn look_of_a_person_or_a_drain_brings_the_next_pass_forward() {
        let (passes, told) = watch::channel(None);
        let (look, looks) = watch::channel(None);
        let mut need = PassesNeeded { told, looks };
        let timeouts = NatTimeouts { half_open_ns: 1, established_ns: 1, closing_ns: 1 };
        passes.send_replace(Some(WantedPasses { timeouts, is_awaited: false }));
        let took = Duration::from_millis(40);
        let begun = Instant::now();
        need.wait(took).await;
        assert_eq!(begun.elapsed().as_secs(), 20);
        let begun = Instant::now();
        tokio::join!(need.wait(took), async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            look.send_replace(Some(Instant::now()));
        });
        assert_eq!(begun.elapsed().as_secs(), 3);
        tokio::time::sleep(ATTENTION).await;
        passes.send_replace(Some(WantedPasses { timeouts, is_awaited: true }));
        let begun = Instant::now();
        need.wait(took).await;
        assert_eq!(begun.elapsed(), PAUSE);
    }
}
