//! Whoever reads from the agent all the time: /metrics, and `diff` over all services.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
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

/// What the readers got.
#[derive(Clone, Copy)]
pub struct Answers {
    pub scrapes: u64,
    pub diffs: u64,
    /// Requests of either kind that were refused or not answered in time.
    pub failed: u64,
}

struct Counting {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    answers: AtomicU64,
    failures: AtomicU64,
}

/// After a failure.
const PAUSE: Duration = Duration::from_millis(100);

impl Readers {
    pub fn start(netns: &Netns, http: SocketAddr, socket: &Path) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, socket) = (netns.clone(), PathBuf::from(socket));
        let scrapes = Counting::start("scrapes", &stop, move || {
            let answer = http::get(&netns, http, "/metrics", PATIENCE)?;
            ensure!(answer.status == 200, "/metrics: status {}", answer.status);
            Ok(())
        })?;
        let diffs =
            Counting::start("diffs", &stop, move || Api::connect(&socket, PATIENCE)?.get("/v1/diff").map(drop))?;
        Ok(Self { stop, scrapes, diffs })
    }

    pub fn stop(mut self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        let (scrapes, failed_scrapes) = self.scrapes.end()?;
        let (diffs, failed_diffs) = self.diffs.end()?;
        Ok(Answers { scrapes, diffs, failed: failed_scrapes + failed_diffs })
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Counting {
    fn start(name: &str, stop: &Arc<AtomicBool>, mut ask: impl FnMut() -> Result<()> + Send + 'static) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let (stop, counted) = (Arc::clone(stop), Arc::clone(&counts));
        let reading = thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => counted.answers.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        eprintln!("a reader: {error}");
                        thread::sleep(PAUSE);
                        counted.failures.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
        Ok(Self { counts, thread: Some(reading.context("can't start a thread")?) })
    }

    /// Answers and failures.
    fn end(&mut self) -> Result<(u64, u64)> {
        let joined = self.thread.take().context("it was ended before")?.join();
        joined.map_err(|_| anyhow!("a reader panicked"))?;
        let Counts { answers, failures } = &*self.counts;
        Ok((answers.load(Ordering::Relaxed), failures.load(Ordering::Relaxed)))
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scrapes, diffs, failed } = self;
        write!(f, "{scrapes} scrapes and {diffs} diffs")?;
        if *failed > 0 { write!(f, " ({failed} more failed)") } else { Ok(()) }
    }
}
