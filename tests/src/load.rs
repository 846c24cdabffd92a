//! Steady load that keeps a record of every connection: when it began, which server answered, and
//! how it ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{sync::watch, task::JoinSet};

use crate::{load::connection::talk, netns::Netns};

pub(crate) mod connection;

/// What kind of load.
#[derive(Clone, Debug)]
pub struct Spec {
    pub target: SocketAddr,
    pub mode: Mode,
    /// Connections at a time.
    pub workers: usize,
    /// Between the end of one request and the next, for each worker.
    pub pause: Duration,
    /// For connecting, and for each request.
    pub timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A new connection for each request.
    Short,
    /// Connections that stay and ask again and again; one that is lost is replaced.
    Long,
}

impl Spec {
    /// A new connection for each request, a few hundred in a second.
    pub fn short(target: SocketAddr) -> Self {
        Self {
            target,
            mode: Mode::Short,
            workers: 4,
            pause: Duration::from_millis(15),
            timeout: Duration::from_secs(2),
        }
    }

    /// Connections that stay, each asking every 100 ms.
    pub fn long(target: SocketAddr, connections: usize) -> Self {
        let pause = Duration::from_millis(100);
        Self { target, mode: Mode::Long, workers: connections, pause, timeout: Duration::from_secs(2) }
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was begun.
    pub began: Instant,
    /// When it failed, or ended; `None` while it lives.
    pub ended: Option<Instant>,
    pub local: SocketAddr,
    pub target: SocketAddr,
    /// The server that answered.
    pub server: Option<String>,
    /// Answers, each right: from the same server, with the number that was asked for.
    pub requests: u64,
    pub outcome: Outcome,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Lives, or was ended by us after all its answers.
    Ok,
    Refused,
    Reset,
    /// Closed by the other end before an answer.
    Closed,
    Timeout,
    /// An answer that is not what was asked for, or another error.
    Other(String),
}

impl Outcome {
    pub fn is_failure(&self) -> bool {
        *self != Outcome::Ok
    }
}

impl Record {
    pub fn is_failure(&self) -> bool {
        self.outcome.is_failure()
    }

    /// It failed after it had had an answer.
    pub fn is_lost(&self) -> bool {
        self.is_failure() && self.requests > 0
    }
}

/// Load that runs in the client's namespace until it is stopped.
pub struct Load {
    records: Arc<Mutex<Vec<Record>>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Load {
    pub fn start(client: &Netns, spec: Spec) -> Result<Self> {
        let records = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let book = Book { records: Arc::clone(&records), stopped };
        let thread = client.spawn(move || run(&spec, &book))?;
        Ok(Self { records, stop, thread: Some(thread) })
    }

    /// All connections so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// Ends the load and returns all its connections.
    pub fn stop(mut self) -> Result<Vec<Record>> {
        self.end()?;
        Ok(std::mem::take(&mut *lock(&self.records)))
    }

    fn end(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended?,
            Some(Err(_)) => anyhow::bail!("the load's thread panicked"),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: load: {error:#}");
        }
    }
}

/// Where workers write their connections down.
#[derive(Clone)]
struct Book {
    records: Arc<Mutex<Vec<Record>>>,
    stopped: watch::Receiver<bool>,
}

impl Book {
    /// Opens the record of a connection; its place.
    fn open(&self, local: SocketAddr, target: SocketAddr) -> usize {
        let began = Instant::now();
        let mut records = lock(&self.records);
        records.push(Record { began, ended: None, local, target, server: None, requests: 0, outcome: Outcome::Ok });
        records.len() - 1
    }

    fn answered(&self, place: usize, server: &str) {
        if let Some(record) = lock(&self.records).get_mut(place) {
            record.requests += 1;
            if record.server.is_none() {
                record.server = Some(server.to_owned());
            }
        }
    }

    fn close(&self, place: usize, outcome: Outcome) {
        if let Some(record) = lock(&self.records).get_mut(place) {
            record.ended = Some(Instant::now());
            record.outcome = outcome;
        }
    }

    /// Waits; true if the load has been stopped by then.
    async fn pause(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            // An error means that the load was dropped.
            _ = stopped.wait_for(|stopped| *stopped) => true,
            () = tokio::time::sleep(time) => *self.stopped.borrow(),
        }
    }
}

fn lock(records: &Mutex<Vec<Record>>) -> MutexGuard<'_, Vec<Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(spec: &Spec, book: &Book) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start tokio")?;
    runtime.block_on(async {
        let mut workers = JoinSet::new();
        for worker in 0..spec.workers {
            let (spec, book) = (spec.clone(), book.clone());
            workers.spawn(async move {
                // Apart from each other, so that they don't all speak at once.
                let offset = spec.pause.mul_f64(worker as f64 / spec.workers as f64);
                let mut stopped = book.pause(offset).await;
                while !stopped {
                    talk(&spec, &book).await;
                    stopped = book.pause(spec.pause).await;
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended.context("a worker of the load panicked")?;
        }
        Ok(())
    })
}

/// The client's next port. Ports go round in order rather than at random, so that none comes up
/// again while anything on the way remembers it; and they are in the SNAT pool, so that the servers
/// see them.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 2048;
    const COUNT: u16 = 30_000;
    FIRST
        + NEXT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| Some((port + 1) % COUNT))
            .unwrap_or_else(|port| port)
}
