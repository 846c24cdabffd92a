//! Repeatedly counts the flows, and removes those that are over, on a blocking thread.

use std::{path::Path, time::Duration};

use lb_common::nat::NatTimeouts;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::passes::{LATER, PassSchedule, Passes, SOON, run};
use crate::dataplane::{
    maps::MapsError,
    plan::FlowUse,
    tables::nat::{FlowCensus, NatTables},
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
    let passes_over_flows = Passes::new(
        tables,
        "cannot count the flows; it is tried again",
        "the pass over the flow tables has failed; drains end by their time-outs alone",
    );
    let schedule = FlowSchedule { need: PassesNeeded { told, looks }, publish };
    tokio::spawn(run(passes_over_flows, schedule, shutdown));
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
            let is_urgent = self.is_urgent() || self.told.borrow().is_none();
            let pause = if is_urgent { SOON } else { LATER }.pause(took);
            tokio::select! {
                () = sleep_until(ended + pause) => return,
                Ok(()) = self.told.changed() => {}
                Ok(()) = self.looks.changed() => {}
            }
        }
    }
}

/// How long passes stay frequent after somebody has asked for counts.
const ATTENTION: Duration = Duration::from_secs(10);

/// Publishes the census of each pass.
struct FlowSchedule {
    need: PassesNeeded,
    publish: watch::Sender<Counted>,
}

impl PassSchedule<NatTables> for FlowSchedule {
    type Found = FlowCensus;

    fn work(
        &mut self,
        began_ns: u64,
    ) -> Option<impl FnOnce(&mut NatTables) -> Result<FlowCensus, MapsError> + Send + 'static> {
        let timeouts = self.need.told.borrow().as_ref()?.timeouts;
        Some(move |tables: &mut NatTables| tables.collect(began_ns, &timeouts))
    }

    fn take(&mut self, began_ns: u64, census: Option<FlowCensus>) {
        if let Some(census) = census {
            self.publish.send_replace(Counted { began_ns, census });
        }
    }

    async fn wait(&mut self, took: Duration) {
        self.need.wait(took).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(begun.elapsed().as_secs(), 4, "a pass of 40 ms, at a percent of a core");
        tokio::time::sleep(ATTENTION).await;
        passes.send_replace(Some(WantedPasses { timeouts, is_awaited: true }));
        let begun = Instant::now();
        need.wait(took).await;
        assert_eq!(begun.elapsed().as_secs(), 4);
    }
}
