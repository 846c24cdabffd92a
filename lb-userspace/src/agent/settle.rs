//! Repeatedly settles slots and collects exceptions on a blocking thread.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::passes::{Ended, Passes};
use crate::{
    clock::boottime_ns,
    dataplane::{
        maps::MapsError,
        rings::Rings,
        settle::{census::SettleCensus, scope::SettleScope, settler::Settler},
    },
};

/// What the last pass has found.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// When the pass began, in CLOCK_BOOTTIME; 0 if there was no pass yet.
    pub began_ns: u64,
    pub census: SettleCensus,
}

impl Settled {
    /// Number of slots that could not settle because ESTABLISHED has no room for their flows.
    pub fn without_room(&self) -> u64 {
        self.census.rings.values().map(|slots| slots.without_room).sum()
    }
}

/// Starts the task on the current runtime. It begins its passes over the rings once it has received
/// their scope; send the scope again, changed or not, after every write of a slot.
pub fn start(
    pin_dir: &Path,
    rings: Arc<Rings>,
    shutdown: CancellationToken,
) -> Result<(watch::Receiver<Settled>, watch::Sender<Option<SettleScope>>), MapsError> {
    let settler = Settler::open(pin_dir, rings)?;
    let (publish, settled) = watch::channel(Settled::default());
    let (scope, told) = watch::channel(None);
    tokio::spawn(run(settler, publish, told, shutdown));
    Ok((settled, scope))
}

const PAUSE: Duration = Duration::from_millis(500);
/// Pause this many times as long as the last pass took, to cap CPU use at 5 % of a core if a pass
/// takes less than a tenth of a second.
const PAUSES_PER_PASS: u32 = 20;
/// The maximum pause, however long a pass takes: until a slot settles, packets of its old
/// connections cost more.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The pause when no slot is left to settle. Slots stay settled until the owner of the maps writes
/// them, which wakes this task; the pass after this pause finds changes by other programs.
const REST: Duration = Duration::from_secs(30);

async fn run(
    settler: Settler,
    publish: watch::Sender<Settled>,
    mut told: watch::Receiver<Option<SettleScope>>,
    shutdown: CancellationToken,
) {
    let mut passes = Passes::new(
        settler,
        "slots cannot settle: their old connections go on as exceptions; it is tried again",
        "the task that settles slots has failed: slots stay in transition until the agent is restarted",
    );
    let mut rests = false;
    let mut is_full = false;
    loop {
        let scope = told.borrow_and_update().clone();
        if let Some(scope) = scope {
            let began_ns = boottime_ns();
            match passes.pass(move |settler| settler.pass(&scope, began_ns)).await {
                Ok(Some(census)) => {
                    rests = census.has_nothing_left();
                    let settled = Settled { began_ns, census };
                    tell(&settled, &mut is_full);
                    publish.send_replace(settled);
                }
                Ok(None) => rests = false,
                Err(Ended) => return,
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = sleep(if rests { REST } else { (passes.took() * PAUSES_PER_PASS).clamp(PAUSE, LONGEST_PAUSE) }) => {}
            Ok(()) = told.changed(), if rests => {}
        }
    }
}

fn tell(settled: &Settled, is_full: &mut bool) {
    let SettleCensus { settled: slots, collected, removed, .. } = settled.census;
    if slots + collected + removed > 0 {
        debug!(settled = slots, collected, removed, "settled slots and collected exceptions");
    }
    let without_room = settled.without_room();
    if without_room > 0 && !*is_full {
        warn!(
            slots = without_room,
            "slots wait to settle: ESTABLISHED has no room for their connections; see flowTables.established"
        );
    } else if without_room == 0 && *is_full {
        info!("every slot whose time had come has settled: ESTABLISHED has room again");
    }
    *is_full = without_room > 0;
}
