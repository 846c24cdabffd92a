//! How the API reaches the agent: commands go to the owner of the maps over a bounded channel, each
//! with a channel for its answer; queries are answered by the reader.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    background,
    state::BackendId,
    view::{
        trace::{TraceQuery, TraceView},
        types::{
            ApiError, BackendSelector, BackendView, Changed, DiffView, ErrorCode, FlowFilter, FlowView, LookupQuery,
            LookupView, Snapshot,
        },
    },
};

/// Answers queries. The functions may block for up to some hundred milliseconds.
pub trait Queries: Send + Sync {
    /// The complete state at one moment.
    fn snapshot(&self, rates: Rates) -> Snapshot;
    /// A snapshot that has the overall state but lacks everything that needs counters or slots.
    fn state(&self) -> Snapshot;
    /// The views of these backends.
    fn backends(&self, chosen: &[BackendId]) -> Vec<BackendView>;
    fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowView>, ApiError>;
    fn lookup(&self, query: &LookupQuery) -> Result<LookupView, ApiError>;
    /// How the maps differ from what they should hold.
    fn diff(&self) -> Result<Vec<DiffView>, ApiError>;
    /// Streams the BPF programs' decisions as they are made, until the receiver is dropped or the
    /// agent stops.
    fn trace(&self, query: TraceQuery, answer: Answer<mpsc::Receiver<TraceView>>);
}

/// How the rates in a snapshot are obtained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rates {
    /// From two samples of the counters. If there is no recent sample, the query waits a moment
    /// between two new ones.
    Measured,
    /// From a recent earlier sample and a new one; zero if there is no earlier one.
    Known,
}

/// A command to the owner of the maps. Every command gets an answer, unless the agent has stopped.
#[derive(Debug)]
pub enum Command {
    Drain(BackendSelector, Answer<Applied>),
    Undrain(BackendSelector, Answer<Applied>),
    /// `None` removes the override.
    SetWeight(BackendSelector, Option<u32>, Answer<Applied>),
    /// Reads the file again; with `accept_loss`, applies it even if that moves connections.
    Reload {
        accept_loss: bool,
        answer: Answer<String>,
    },
    /// Shows that the owner still takes commands.
    Ping(Answer<()>),
}

pub type Answer<T> = oneshot::Sender<Result<T, ApiError>>;

/// What a command has done, and to which backends.
#[derive(Debug)]
pub struct Applied {
    pub messages: Vec<String>,
    pub chosen: Vec<BackendId>,
}

#[derive(Clone)]
pub struct AgentHandle {
    commands: mpsc::Sender<Command>,
    reader: Arc<dyn Queries>,
}

impl AgentHandle {
    pub fn new(commands: mpsc::Sender<Command>, reader: impl Queries + 'static) -> Self {
        Self { commands, reader: Arc::new(reader) }
    }

    /// The complete state at one moment, with rates.
    pub async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        self.read(|reader| Ok(reader.snapshot(Rates::Measured))).await
    }

    /// Like `snapshot`, but never waits to measure rates: they are zero if there is no recent
    /// sample.
    pub async fn scrape(&self) -> Result<Snapshot, ApiError> {
        self.read(|reader| Ok(reader.snapshot(Rates::Known))).await
    }

    /// See [`Queries::state`]. It does not run in the background, because other machines judge this
    /// node by the answer.
    pub async fn state(&self) -> Result<Snapshot, ApiError> {
        let reader = self.reader.clone();
        spawn_blocking(move || reader.state()).await.map_err(|_| stopping())
    }

    pub async fn flows(&self, filter: FlowFilter) -> Result<Vec<FlowView>, ApiError> {
        self.read(move |reader| reader.flows(&filter)).await
    }

    pub async fn lookup(&self, query: LookupQuery) -> Result<LookupView, ApiError> {
        self.read(move |reader| reader.lookup(&query)).await
    }

    pub async fn diff(&self) -> Result<Vec<DiffView>, ApiError> {
        self.read(|reader| reader.diff()).await
    }

    /// See [`Queries::trace`].
    pub async fn trace(&self, query: TraceQuery) -> Result<mpsc::Receiver<TraceView>, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.reader.trace(query, answer);
        answered.await.map_err(|_| stopping())?
    }

    pub async fn drain(&self, selector: BackendSelector) -> Result<Changed, ApiError> {
        self.change(|answer| Command::Drain(selector, answer)).await
    }

    pub async fn undrain(&self, selector: BackendSelector) -> Result<Changed, ApiError> {
        self.change(|answer| Command::Undrain(selector, answer)).await
    }

    /// `None` removes the override.
    pub async fn set_weight(&self, selector: BackendSelector, weight: Option<u32>) -> Result<Changed, ApiError> {
        self.change(|answer| Command::SetWeight(selector, weight, answer)).await
    }

    pub async fn reload(&self, accept_loss: bool) -> Result<Changed, ApiError> {
        let message = self.ask(|answer| Command::Reload { accept_loss, answer }).await?;
        Ok(Changed { messages: vec![message], backends: Vec::new() })
    }

    /// Whether the owner of the maps takes commands.
    pub async fn ping(&self) -> Result<(), ApiError> {
        self.ask(Command::Ping).await
    }

    async fn change(&self, command: impl FnOnce(Answer<Applied>) -> Command) -> Result<Changed, ApiError> {
        let Applied { messages, chosen } = self.ask(command).await?;
        let backends = self.read(move |reader| Ok(reader.backends(&chosen))).await?;
        Ok(Changed { messages, backends })
    }

    /// Sends the command that `command` builds from the answer's channel, and waits for the answer.
    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// Answers a query on a background thread, because there may be thousands of backends and a
    /// million flows.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&dyn Queries) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let reader = self.reader.clone();
        background::spawn(move || query(&*reader)).await.map_err(|_| stopping())?
    }
}

fn stopping() -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: "the agent is stopping".to_owned() }
}

/// The answer to a reload that was refused for these reasons.
pub fn failed_reload(errors: &[String]) -> ApiError {
    let message = format!("the configuration is refused, the running one stays:\n  {}", errors.join("\n  "));
    ApiError { code: ErrorCode::Invalid, message }
}
