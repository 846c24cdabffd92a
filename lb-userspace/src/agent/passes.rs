//! Runs slow passes one after another, each on a blocking thread.

use std::{fmt::Display, time::Duration};

use tokio::task::spawn_blocking;
use tracing::error;

use crate::clock::thread_time;

/// Runs the passes of a worker, and logs when they fail.
pub struct Passes<T> {
    /// `None` while a pass runs, and after one that has panicked.
    worker: Option<T>,
    is_failing: bool,
    /// The CPU time of the last pass.
    took: Duration,
    /// Logged at the first of several failures in a row.
    failed: &'static str,
    /// Logged if a pass panics.
    ended: &'static str,
}

/// A pass has panicked, which is logged: there will be no more passes.
#[derive(Clone, Copy, Debug)]
pub struct Ended;

impl<T: Send + 'static> Passes<T> {
    pub const fn new(worker: T, failed: &'static str, ended: &'static str) -> Self {
        Self { worker: Some(worker), is_failing: false, took: Duration::ZERO, failed, ended }
    }

    /// The CPU time of the last pass. On a busy machine, the pass may have lasted much longer.
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
