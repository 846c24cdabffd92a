//! Threads of low priority, for the requests of people and scrapes: documents of thousands of
//! backends. On a busy machine, such work gives way to health checks, which decide where
//! connections go.

use std::sync::LazyLock;

use rustix::process::setpriority_process;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};
use tracing::warn;

/// The nice value of the threads, from 0 (as other threads) to 19 (the lowest priority).
const NICE: i32 = 10;
/// The number of jobs that run at the same time; more jobs wait.
const THREADS: usize = 8;

/// Runs `work` on one of the threads.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    static THREADS_OF_LOW_PRIORITY: LazyLock<Option<Runtime>> = LazyLock::new(start);
    match &*THREADS_OF_LOW_PRIORITY {
        Some(runtime) => runtime.spawn_blocking(work),
        None => tokio::task::spawn_blocking(work),
    }
}

/// A runtime of which only the threads for blocking work are used.
fn start() -> Option<Runtime> {
    let be_nice = || {
        // Without a process id, the call concerns the calling thread alone.
        if let Err(error) = setpriority_process(None, NICE) {
            warn!(%error, "a thread for work in the background has the priority of all others");
        }
    };
    let runtime = Builder::new_current_thread()
        .thread_name("background")
        .max_blocking_threads(THREADS)
        .on_thread_start(be_nice)
        .build();
    runtime.inspect_err(|error| warn!(%error, "work in the background has the priority of all other work")).ok()
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn work_has_a_low_priority_and_its_caller_keeps_its_own() {
        let before = getpriority_process(None).unwrap();
        let inside = spawn(|| getpriority_process(None).unwrap()).await.unwrap();
        assert_eq!((inside, getpriority_process(None).unwrap()), (NICE.max(before), before));
    }
}
