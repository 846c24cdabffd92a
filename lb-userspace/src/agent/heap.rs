//! Returns free memory to the kernel after work that needed much memory for a short time: a plan of
//! all services needs several times the memory of its result.

use std::time::Duration;

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::heap;

/// The minimum time between two returns of memory.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the task on the current runtime. Each send makes it return free memory to the kernel. The
/// work is not done in the background, because it locks the heaps, and a thread of low priority
/// would hold these locks for long.
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
