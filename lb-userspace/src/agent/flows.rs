//! Repeatedly counts the flows, and removes those that are over, on a blocking thread.

use std::{path::Path, time::Duration};

use lb_common::nat::NatTimeouts;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    clock::boottime_ns,
    dataplane::{
        maps::MapsError,
        plan::FlowUse,
        tables::nat::{FlowCensus, FlowTables},
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

/// Starts the task on the current runtime. It begins its passes over the tables once it has
/// received the time-outs.
pub fn start(
    pin_dir: &Path,
    shutdown: CancellationToken,
) -> Result<(watch::Receiver<Counted>, watch::Sender<Option<NatTimeouts>>), MapsError> {
    let tables = FlowTables::open(pin_dir)?;
    let (publish, census) = watch::channel(Counted::default());
    let (timeouts, told) = watch::channel(None);
    tokio::spawn(run(tables, publish, told, shutdown));
    Ok((census, timeouts))
}

const PAUSE: Duration = Duration::from_millis(500);
/// Pause this many times as long as the last pass took, to cap CPU use.
const PAUSES_PER_PASS: u32 = 10;

async fn run(
    mut tables: FlowTables,
    publish: watch::Sender<Counted>,
    told: watch::Receiver<Option<NatTimeouts>>,
    shutdown: CancellationToken,
) {
    let mut failing = false;
    loop {
        let begun = Instant::now();
        let timeouts = *told.borrow();
        if let Some(timeouts) = timeouts {
            let began_ns = boottime_ns();
            let pass = spawn_blocking(move || {
                let census = tables.collect(began_ns, &timeouts);
                (tables, census)
            });
            match pass.await {
                Ok((back, Ok(census))) => {
                    tables = back;
                    failing = false;
                    publish.send_replace(Counted { began_ns, census });
                }
                Ok((back, Err(error))) => {
                    tables = back;
                    if !failing {
                        error!(%error, "cannot count the flows; it is tried again");
                    }
                    failing = true;
                }
                Err(error) => {
                    error!(%error, "the pass over the flow tables has failed; drains end by their time-outs alone");
                    return;
                }
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = sleep(PAUSE.max(begun.elapsed() * PAUSES_PER_PASS)) => {}
        }
    }
}
