//! Sends the BPF programs' decisions to listeners: the clients that trace. The programs report
//! decisions only while there is a listener: then the owner of the maps sets `FLAG_TRACE`, and this
//! module sets the filter. A listener that is too slow loses events and is told how many; it delays
//! nobody else.

mod filter;
mod view;

use std::{path::Path, time::Duration};

use lb_common::{limits::TRACE_BYTES, trace::TraceEvent};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::view::{Names, slot_state};
use super::handle::Answer;
use crate::{
    clock::boottime_ns,
    dataplane::{maps::MapsError, trace::Trace},
    view::{
        trace::{TraceQuery, TraceView},
        types::{ApiError, ErrorCode},
    },
};

/// Handle to the task that reads the events.
pub struct Tracer {
    asks: mpsc::Sender<Ask>,
    /// Whether there is any listener.
    pub is_wanted: watch::Receiver<bool>,
    /// The names of services, backends and interfaces, which events give by number.
    pub names: watch::Sender<Names>,
}

struct Ask {
    query: TraceQuery,
    answer: Answer<mpsc::Receiver<TraceView>>,
}

/// Maximum number of listeners at once.
const MAX_LISTENERS: usize = 16;
/// Maximum number of events queued for one listener.
const BACKLOG: usize = 4096;
/// How often events are read while there is a listener. The ring buffer holds more events than
/// arrive in this time at [`MAX_RATE`](crate::view::trace::MAX_RATE), so the programs need not wake
/// up this task.
const TAKE_EVERY: Duration = Duration::from_millis(10);
/// Maximum number of events read before the task does anything else: as many as the ring buffer
/// holds.
const BATCH: usize = TRACE_BYTES as usize / size_of::<TraceEvent>();
/// How often the task checks whether a listener has gone.
const LOOK_AFTER: Duration = Duration::from_millis(500);

impl Tracer {
    pub fn ask(&self, query: TraceQuery, answer: Answer<mpsc::Receiver<TraceView>>) {
        if let Err(refused) = self.asks.try_send(Ask { query, answer }) {
            let answer = refused.into_inner().answer;
            drop(answer.send(Err(unavailable("no trace can be started now; try again"))));
        }
    }
}

/// Starts the task on the current runtime.
pub fn start(pin_dir: &Path, shutdown: CancellationToken) -> Result<Tracer, MapsError> {
    let trace = Trace::open(pin_dir)?;
    let (asks, asked) = mpsc::channel(MAX_LISTENERS);
    let (wanted, is_wanted) = watch::channel(false);
    let (names, called) = watch::channel(Names::default());
    let teller = Teller { trace, number: 0, listeners: Vec::new(), wanted, names: called };
    tokio::spawn(teller.run(asked, shutdown));
    Ok(Tracer { asks, is_wanted, names })
}

struct Teller {
    trace: Trace,
    /// The number of the current trace.
    number: u32,
    listeners: Vec<Listener>,
    wanted: watch::Sender<bool>,
    names: watch::Receiver<Names>,
}

impl Teller {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, shutdown: CancellationToken) {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut look, mut take) = (every(LOOK_AFTER), every(TAKE_EVERY));
        loop {
            let is_heard = !self.listeners.is_empty();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(ask) = asked.recv() => self.take(ask),
                _ = look.tick(), if is_heard => self.look_after(),
                _ = take.tick(), if is_heard => self.tell(),
            }
        }
    }

    fn tell(&mut self) {
        let names = self.names.borrow();
        let epoch = view::unix_epoch_of_boot();
        for event in std::iter::from_fn(|| self.trace.take()).take(BATCH) {
            let told = view::view(&event, &names, epoch);
            for listener in &mut self.listeners {
                listener.tell(&told);
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        if self.listeners.len() >= MAX_LISTENERS {
            let error = unavailable(&format!("{MAX_LISTENERS} traces run already; end one of them"));
            drop(ask.answer.send(Err(error)));
            return;
        }
        if self.listeners.is_empty() {
            // Discard the events that an earlier trace has left.
            while self.trace.take().is_some() {}
            // Any number will do that differs from the previous trace's, which may have belonged to
            // another agent.
            self.number = (boottime_ns() / 1_000_000) as u32;
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.push(Listener::new(ask.query, sender));
        if let Err(error) = self.set_filter() {
            self.listeners.pop();
            drop(ask.answer.send(Err(ApiError { code: ErrorCode::Failed, message: error.to_string() })));
            return;
        }
        if let Some(listener) = self.listeners.last() {
            info!(query = ?listener.query, "a trace begins");
        }
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
        // If the requester has gone, `look_after` soon removes the listener.
        drop(ask.answer.send(Ok(receiver)));
    }

    /// Removes the listeners that have gone.
    fn look_after(&mut self) {
        let before = self.listeners.len();
        self.listeners.retain(|listener| {
            let stays = !listener.to.is_closed();
            if !stays {
                info!(told = listener.told, "a trace has ended");
            }
            stays
        });
        if self.listeners.is_empty() {
            self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, false));
        } else if self.listeners.len() < before
            && let Err(error) = self.set_filter()
        {
            warn!(%error, "the trace filter cannot be narrowed: the programs report decisions that nobody asks for");
        }
    }

    fn set_filter(&mut self) -> Result<(), MapsError> {
        let filter = filter::common(self.number, self.listeners.iter().map(|listener| &listener.query));
        self.trace.set_filter(&filter)
    }
}

/// A client that receives the decisions matching its query.
struct Listener {
    query: TraceQuery,
    to: mpsc::Sender<TraceView>,
    /// Number of events not sent since the last event that was sent.
    missed: u64,
    told: u64,
    second: Instant,
    told_in_second: u32,
}

impl Listener {
    fn new(query: TraceQuery, to: mpsc::Sender<TraceView>) -> Self {
        Self { query, to, missed: 0, told: 0, second: Instant::now(), told_in_second: 0 }
    }

    fn tell(&mut self, view: &TraceView) {
        self.missed += view.missed;
        if !self.query.fits(view) {
            return;
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.told_in_second = 0;
        }
        // The programs limit the rate on each CPU separately, so limit the total here.
        if self.told_in_second >= self.query.rate() {
            self.missed += 1;
            return;
        }
        let told = TraceView { missed: self.missed, ..view.clone() };
        match self.to.try_send(told) {
            Ok(()) => {
                self.missed = 0;
                self.told += 1;
                self.told_in_second += 1;
            }
            // The listener is too slow, or gone.
            Err(_) => self.missed += 1,
        }
    }
}

fn unavailable(message: &str) -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::trace::tests::view;

    #[tokio::test]
    async fn slow_reader_loses_events_and_is_told_how_many() {
        let (sender, mut receiver) = mpsc::channel(2);
        let mut listener = Listener::new(TraceQuery::default(), sender);
        let event = view("198.51.100.7:40000", "192.0.2.10:80", "forward");
        for _ in 0..5 {
            listener.tell(&event);
        }
        assert_eq!(receiver.recv().await.unwrap().missed, 0);
        assert_eq!(receiver.recv().await.unwrap().missed, 0);
        listener.tell(&TraceView { missed: 10, ..event });
        assert_eq!(receiver.recv().await.unwrap().missed, 13);
    }

    #[tokio::test(start_paused = true)]
    async fn rate_holds_over_all_cpus_and_begins_anew_each_second() {
        let (sender, mut receiver) = mpsc::channel(100);
        let mut listener = Listener::new(TraceQuery { rate: Some(3), ..TraceQuery::default() }, sender);
        let event = view("198.51.100.7:40000", "192.0.2.10:80", "forward");
        for _ in 0..10 {
            listener.tell(&event);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        listener.tell(&event);
        drop(listener);
        let mut missed = Vec::new();
        while let Some(told) = receiver.recv().await {
            missed.push(told.missed);
        }
        assert_eq!(missed, [0, 0, 0, 7]);
    }

    #[tokio::test]
    async fn what_others_asked_for_is_not_told() {
        let (sender, mut receiver) = mpsc::channel(2);
        let query = TraceQuery { client: Some("198.51.100.8".parse().unwrap()), ..TraceQuery::default() };
        let mut listener = Listener::new(query, sender);
        listener.tell(&view("198.51.100.7:40000", "192.0.2.10:80", "forward"));
        drop(listener);
        assert_eq!(receiver.recv().await, None);
    }
}
