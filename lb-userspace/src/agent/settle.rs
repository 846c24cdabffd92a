//! Repeatedly settles slots and collects exceptions on a blocking thread.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::passes::{PassSchedule, Passes, SOON, run};
use crate::dataplane::{
    maps::MapsError,
    rings::Rings,
    settle::{census::SettleCensus, scope::SettleScope, settler::Settler},
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
    let passes = Passes::new(
        settler,
        "slots cannot settle: their old connections go on as exceptions; it is tried again",
        "the task that settles slots has failed: slots stay in transition until the agent is restarted",
    );
    tokio::spawn(run(passes, SettleSchedule { told, publish, rests: false, is_full: false }, shutdown));
    Ok((settled, scope))
}

/// The pause when no slot is left to settle. Slots stay settled until the owner of the maps writes
/// them, which wakes this task; the pass after this pause finds changes by other programs.
const REST: Duration = Duration::from_secs(30);

/// Publishes what each pass has found.
struct SettleSchedule {
    told: watch::Receiver<Option<SettleScope>>,
    publish: watch::Sender<Settled>,
    /// Whether no slot is left to settle.
    rests: bool,
    is_full: bool,
}

impl PassSchedule<Settler> for SettleSchedule {
    type Found = SettleCensus;

    fn work(
        &mut self,
        began_ns: u64,
    ) -> Option<impl FnOnce(&mut Settler) -> Result<SettleCensus, MapsError> + Send + 'static> {
        let scope = self.told.borrow_and_update().clone()?;
        Some(move |settler: &mut Settler| settler.pass(&scope, began_ns))
    }

    fn take(&mut self, began_ns: u64, census: Option<SettleCensus>) {
        self.rests = census.as_ref().is_some_and(SettleCensus::has_nothing_left);
        if let Some(census) = census {
            let settled = Settled { began_ns, census };
            tell(&settled, &mut self.is_full);
            self.publish.send_replace(settled);
        }
    }

    async fn wait(&mut self, took: Duration) {
        sleep(SOON.pause(took)).await;
        if self.rests {
            tokio::select! {
                () = sleep(REST) => {}
                // If all senders are gone, the agent is stopping.
                Ok(()) = self.told.changed() => {}
            }
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
