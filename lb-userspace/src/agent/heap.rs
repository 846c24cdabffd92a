//! Gives memory back to the kernel after work that took much of it for a moment: a plan of all
//! services needs a multiple of what is kept of it.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{background, heap};

/// The shortest time from one time to the next, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Starts the task on the current runtime. It gives memory back after each send, and from time to
/// time.
pub fn start(shutdown: CancellationToken) -> watch::Sender<()> {
    let (ask, asked) = watch::channel(());
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = run(asked) => {}
        }
    });
    ask
}

async fn run(mut asked: watch::Receiver<()>) {
    let (shortest, longest) = PAUSES;
    while !matches!(timeout(longest, asked.changed()).await, Ok(Err(_))) {
        drop(background::spawn(heap::give_back).await);
        sleep(shortest).await;
    }
}
