//! A crowd of connections to the echo servers, each with its story: talkers say a number every 100
//! ms and check the answer, the silent speak once at the beginning and once at the end, and passers
//! come and go all the time.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
};

use crate::{
    load::{Outcome, Record},
    netns::Netns,
};

mod member;

/// What comes to one VIP.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub target: SocketAddr,
    pub talkers: usize,
    pub silent: usize,
    /// New connections a second.
    pub passers: u32,
}

/// How often a talker speaks.
pub const BEAT: Duration = Duration::from_millis(100);

/// An answer, or a connection, that takes longer is lost: TCP has sent it again five times by then.
pub const PATIENCE: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Talker,
    Silent,
    Passer,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Talker => "talker",
            Kind::Silent => "silent",
            Kind::Passer => "new",
        }
    }
}

/// One connection, from its begin to its end.
#[derive(Clone, Debug)]
pub struct Story {
    pub kind: Kind,
    pub record: Record,
    /// The longest that it waited for an answer that came.
    pub longest_wait: Duration,
}

/// Runs in the client's namespace until it is finished.
pub struct Crowd {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<Result<Vec<Story>>>>>,
}

impl Crowd {
    /// Returns when every talker and every silent one has had its first answer.
    pub fn start(client: &Netns, specs: &[Spec]) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (ready, all_ready) = mpsc::channel();
        let specs = specs.to_vec();
        let thread = client.spawn(move || run(&specs, &stopped, &ready))?;
        let mut crowd = Self { stop, thread: Some(thread) };
        if all_ready.recv_timeout(GATHERING).is_err() {
            let stories = crowd.end()?;
            let failed = stories.iter().filter(|story| story.record.is_failure()).count();
            bail!("the crowd is not complete after {GATHERING:?}: {failed} of {} connections failed", stories.len());
        }
        Ok(crowd)
    }

    /// Lets the silent speak, ends all, and returns their stories. A lost connection is followed by
    /// another one, which is a story of its own.
    pub fn finish(mut self) -> Result<Vec<Story>> {
        self.end()
    }

    fn end(&mut self) -> Result<Vec<Story>> {
        self.stop.send_replace(true);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(Vec::new()),
            Some(Ok(ended)) => ended?,
            Some(Err(_)) => bail!("the crowd's thread panicked"),
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: crowd: {error:#}");
        }
    }
}

/// How long it may take until all are connected.
const GATHERING: Duration = Duration::from_secs(30);

fn run(specs: &[Spec], stopped: &watch::Receiver<bool>, ready: &mpsc::Sender<()>) -> Result<Vec<Story>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start tokio")?;
    let floor = Rc::new(Floor { stories: RefCell::default(), stopped: stopped.clone() });
    LocalSet::new().block_on(&runtime, async {
        let mut members = JoinSet::new();
        let mut waiting = Vec::new();
        for spec in specs {
            for (kind, count) in [(Kind::Talker, spec.talkers), (Kind::Silent, spec.silent)] {
                for number in 0..count {
                    let (begun, first_answer) = tokio::sync::oneshot::channel();
                    waiting.push(first_answer);
                    // Spread over the beat, so that they don't all speak at once.
                    let offset = BEAT.mul_f64(number as f64 / count as f64);
                    members.spawn_local(member::stay(Rc::clone(&floor), *spec, kind, offset, begun));
                }
            }
        }
        for first_answer in waiting {
            // An error: the crowd was stopped before.
            drop(first_answer.await);
        }
        // Nobody waits any more if it took too long, which has been reported.
        ready.send(()).ok();
        for spec in specs {
            members.spawn_local(member::pass(Rc::clone(&floor), *spec));
        }
        while let Some(ended) = members.join_next().await {
            ended.context("one of the crowd panicked")?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(floor.stories.take())
}

/// Where the members write their stories.
struct Floor {
    stories: RefCell<Vec<Story>>,
    stopped: watch::Receiver<bool>,
}

impl Floor {
    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Waits until `at`; true if the crowd has been stopped by then.
    async fn pause_until(&self, at: Instant) -> bool {
        tokio::select! {
            () = self.stop() => true,
            () = tokio::time::sleep_until(at.into()) => self.is_stopped(),
        }
    }

    async fn stop(&self) {
        // An error means that the crowd was dropped.
        drop(self.stopped.clone().wait_for(|stopped| *stopped).await);
    }

    fn begin(&self, kind: Kind, local: SocketAddr, target: SocketAddr) -> usize {
        let record = Record {
            began: Instant::now(),
            ended: None,
            local,
            target,
            server: None,
            requests: 0,
            outcome: Outcome::Ok,
        };
        let mut stories = self.stories.borrow_mut();
        stories.push(Story { kind, record, longest_wait: Duration::ZERO });
        stories.len() - 1
    }

    fn end(&self, place: usize, outcome: Outcome) {
        let record = &mut self.stories.borrow_mut()[place].record;
        record.ended = Some(Instant::now());
        record.outcome = outcome;
    }
}
