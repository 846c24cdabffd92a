//! Repeatedly compares the maps with what the owner wrote, on a blocking thread, so that changes by
//! other programs are undone. The owner itself compares the slots, some at a time.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    passes::{Pacing, Passes},
    published::Published,
};
use crate::dataplane::maps::{Maps, MapsError};

/// At most a third of a percent of a core, but every minute.
const PACING: Pacing = Pacing { times: 300, shortest: Duration::from_secs(5), longest: Duration::from_secs(60) };
/// The delay before a difference is checked again: if the owner was just writing, the difference is
/// gone by then.
const AGAIN: Duration = Duration::from_millis(500);
/// After this many inconclusive comparisons in a row, during each of which the owner wrote, the
/// owner is asked to read and write the maps again.
const UNDECIDED: u32 = 5;

/// Compares the maps that are pinned in `pin_dir` until `shutdown` is cancelled. Increments `found`
/// each time the owner has to write them again.
pub fn start(
    pin_dir: &Path,
    published: watch::Receiver<Arc<Published>>,
    found: watch::Sender<u64>,
    shutdown: CancellationToken,
) -> Result<(), MapsError> {
    let auditor = Auditor { maps: Maps::open(pin_dir)?, published, undecided: 0 };
    tokio::spawn(shutdown.run_until_cancelled_owned(run(auditor, found)));
    Ok(())
}

async fn run(auditor: Auditor, found: watch::Sender<u64>) {
    let ended = "the task that compares the maps with what was written has failed: changes by other programs stay";
    let mut passes = Passes::new(auditor, "the maps cannot be compared with what was written", ended);
    let mut pause = PACING.shortest;
    loop {
        sleep(pause).await;
        let Ok(mut is_wrong) = passes.pass(Auditor::look).await else { return };
        if is_wrong == Some(true) {
            sleep(AGAIN).await;
            let Ok(still) = passes.pass(Auditor::look).await else { return };
            is_wrong = still;
        }
        if is_wrong == Some(true) {
            found.send_modify(|found| *found += 1);
        }
        pause = PACING.pause(passes.took());
    }
}

struct Auditor {
    maps: Maps,
    published: watch::Receiver<Arc<Published>>,
    /// The number of inconclusive comparisons in a row, during which the owner wrote.
    undecided: u32,
}

impl Auditor {
    /// Whether the owner has to write the maps again.
    fn look(&mut self) -> Result<bool, MapsError> {
        let published = self.published.borrow().clone();
        if published.sync.last_success_at == 0.0 || published.sync.last_error.is_some() {
            // The owner has not written yet, or tries again by itself.
            return Ok(false);
        }
        let image = self.maps.read()?;
        let is_alike = image == published.programmed.image() && self.maps.wrong_filter_words(&image)?.is_empty();
        let is_decided = is_alike || Arc::ptr_eq(&published, &self.published.borrow());
        self.undecided = if is_decided { 0 } else { self.undecided + 1 };
        Ok(!is_alike && (is_decided || self.undecided >= UNDECIDED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_of_many_backends_are_further_apart_but_every_minute() {
        assert_eq!(PACING.pause(Duration::from_millis(3)), PACING.shortest);
        assert_eq!(PACING.pause(Duration::from_millis(100)), Duration::from_secs(30));
        assert_eq!(PACING.pause(Duration::from_secs(1)), PACING.longest);
    }
}
