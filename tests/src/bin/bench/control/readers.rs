//! Whoever reads from the agent all the time: /metrics, and `diff` over all services.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, ensure};
use weir_tests::{
    http::{self, Api},
    netns::Netns,
};

use super::changes::PATIENCE;

/// Two loops, each with its next request as soon as it has the answer; ended when dropped.
pub struct Readers {
    stop: Arc<AtomicBool>,
    scrapes: Counting,
    diffs: Counting,
}

struct Counting {
    answers: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Readers {
    pub fn start(netns: &Netns, http: SocketAddr, socket: &Path) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, socket) = (netns.clone(), PathBuf::from(socket));
        let scrapes = Counting::start("scrapes", &stop, move || {
            let answer = http::get(&netns, http, "/metrics", PATIENCE)?;
            ensure!(answer.status == 200, "/metrics: status {}", answer.status);
            Ok(())
        })?;
        let mut api = Api::connect(&socket, PATIENCE)?;
        let diffs = Counting::start("diffs", &stop, move || api.get("/v1/diff").map(drop))?;
        Ok(Self { stop, scrapes, diffs })
    }

    /// How many scrapes and how many diffs were answered.
    pub fn stop(mut self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        Ok((self.scrapes.end()?, self.diffs.end()?))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Counting {
    fn start(name: &str, stop: &Arc<AtomicBool>, mut ask: impl FnMut() -> Result<()> + Send + 'static) -> Result<Self> {
        let answers = Arc::new(AtomicU64::new(0));
        let (stop, counted) = (Arc::clone(stop), Arc::clone(&answers));
        let reading = thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                ask()?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { answers, thread: Some(reading.context("can't start a thread")?) })
    }

    fn end(&mut self) -> Result<u64> {
        let joined = self.thread.take().context("it was ended before")?.join();
        joined.unwrap_or_else(|_| Err(anyhow!("a reader panicked")))?;
        Ok(self.answers.load(Ordering::Relaxed))
    }
}
