//! Gives memory back to the kernel after work that took much of it for a moment: a plan of all
//! services needs a multiple of what is kept of it.

use std::time::Duration;

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::heap;

/// The shortest time from one time to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the task on the current runtime. It gives memory back after each send. Not in the
/// background, because it locks the heaps: a thread of low priority would hold the locks for long.
pub fn start(shutdown: CancellationToken) -> watch::Sender<()> {
    let (ask, asked) = watch::channel(());
    tokio::spawn(shutdown.run_until_cancelled_owned(run(asked)));
    ask
}

async fn run(mut asked: watch::Receiver<()>) {
    while asked.changed().await.is_ok() {
        drop(spawn_blocking(heap::give_back).await);
        sleep(PAUSE).await;
    }
}
