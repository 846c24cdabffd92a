//! The loop of the tasks that go over whole tables again and again: each pass runs on a blocking
//! thread, and the pauses between passes cap their CPU use.

use std::{fmt::Display, time::Duration};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    clock::{boottime_ns, thread_time},
    dataplane::maps::MapsError,
};

/// Runs the passes of a worker, and logs when they fail.
pub struct Passes<T> {
    /// `None` while a pass runs, and after one that has panicked.
    worker: Option<T>,
    is_failing: bool,
    /// The CPU time of the last pass. On a busy machine, the pass may have lasted much longer.
    took: Duration,
    /// Logged at the first of several failures in a row.
    failed: &'static str,
    /// Logged if a pass panics.
    ended: &'static str,
}

/// What the passes of a worker do, and when.
pub trait PassSchedule<T>: Send {
    type Found: Send + 'static;

    /// The work of a pass that begins now, in CLOCK_BOOTTIME; `None` if there is none yet.
    fn work(&mut self, began_ns: u64)
    -> Option<impl FnOnce(&mut T) -> Result<Self::Found, MapsError> + Send + 'static>;

    /// Takes the result of that pass; `None` if it failed.
    fn take(&mut self, began_ns: u64, found: Option<Self::Found>);

    /// Waits until the next pass is due, after one that took this much CPU time.
    fn wait(&mut self, took: Duration) -> impl Future<Output = ()> + Send;
}

/// Runs passes until `shutdown` is cancelled, or until a pass panics.
pub async fn run<T: Send + 'static>(
    mut passes: Passes<T>,
    mut schedule: impl PassSchedule<T>,
    shutdown: CancellationToken,
) {
    loop {
        let began_ns = boottime_ns();
        if let Some(work) = schedule.work(began_ns) {
            match passes.pass(work).await {
                Ok(found) => schedule.take(began_ns, found),
                Err(Ended) => return,
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = schedule.wait(passes.took) => {}
        }
    }
}

/// How long a task pauses after a pass.
pub struct Pacing {
    /// The pause, in times of the pass's CPU time, to cap CPU use.
    pub times: u32,
    pub shortest: Duration,
    pub longest: Duration,
}

/// While somebody waits for the result: at most 1 % of a core while a pass takes up to 50 ms of CPU
/// time, and a pass at least every five seconds or so.
pub const SOON: Pacing = Pacing { times: 100, shortest: Duration::from_millis(500), longest: Duration::from_secs(5) };
/// Otherwise: at most a fifth of a percent of a core while a pass takes up to 100 ms of CPU time,
/// and every entry is checked about once a minute.
pub const LATER: Pacing = Pacing { times: 500, shortest: Duration::from_millis(500), longest: Duration::from_secs(50) };

impl Pacing {
    pub fn pause(&self, took: Duration) -> Duration {
        (took * self.times).clamp(self.shortest, self.longest)
    }
}

/// A pass has panicked, which is logged: there will be no more passes.
#[derive(Clone, Copy, Debug)]
pub struct Ended;

impl<T: Send + 'static> Passes<T> {
    pub const fn new(worker: T, failed: &'static str, ended: &'static str) -> Self {
        Self { worker: Some(worker), is_failing: false, took: Duration::ZERO, failed, ended }
    }

    /// The CPU time of the last pass.
    pub const fn took(&self) -> Duration {
        self.took
    }

    /// Runs a pass and returns its result; `None` if it failed, which is logged.
    pub async fn pass<R: Send + 'static, E: Display + Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut T) -> Result<R, E> + Send + 'static,
    ) -> Result<Option<R>, Ended> {
        let Some(mut worker) = self.worker.take() else { return Err(Ended) };
        let pass = spawn_blocking(move || {
            let begun = thread_time();
            let result = work(&mut worker);
            (worker, result, thread_time().saturating_sub(begun))
        });
        let (worker, result, took) = pass.await.map_err(|error| {
            error!(%error, "{}", self.ended);
            Ended
        })?;
        (self.worker, self.took) = (Some(worker), took);
        let was_failing = std::mem::replace(&mut self.is_failing, result.is_err());
        if let Err(error) = &result
            && !was_failing
        {
            error!(%error, "{}", self.failed);
        }
        Ok(result.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_a_percent_of_a_core_unless_they_take_so_long_that_results_would_be_old() {
        let took = Duration::from_millis(20);
        assert_eq!(LATER.pause(took), Duration::from_secs(10));
        assert_eq!(SOON.pause(took), Duration::from_secs(2));
        assert_eq!(SOON.pause(Duration::from_micros(9)), Duration::from_millis(500), "never without a pause");
        let long = Duration::from_secs(2);
        assert_eq!([SOON, LATER].map(|pacing| pacing.pause(long).as_secs()), [5, 50]);
    }

    #[tokio::test]
    async fn worker_comes_back_from_each_pass_but_not_from_a_panic() {
        let mut passes = Passes::new(0_u32, "failed", "ended");
        let add = |worker: &mut u32| {
            *worker += 1;
            if worker.is_multiple_of(2) { Err("even") } else { Ok(*worker) }
        };
        assert_eq!(passes.pass(add).await.unwrap(), Some(1));
        assert_eq!(passes.pass(add).await.unwrap(), None);
        assert_eq!(passes.pass(add).await.unwrap(), Some(3));
        let panics = |_: &mut u32| -> Result<(), String> { panic!("as the test wants it") };
        assert!(passes.pass(panics).await.is_err());
        assert!(passes.pass(add).await.is_err(), "there is no worker left");
    }
}
