//! How the API reaches the agent: commands over a bounded channel, each with a channel for its
//! answer.

use tokio::sync::{mpsc, oneshot};

use crate::view::{
    trace::{TraceQuery, TraceView},
    types::{
        ApiError, BackendSelector, Changed, DiffView, ErrorCode, FlowFilter, FlowView, LookupQuery, LookupView,
        Snapshot,
    },
};

/// A command to the agent. Every command gets an answer, unless the agent has stopped.
#[derive(Debug)]
pub enum Command {
    Snapshot(oneshot::Sender<Snapshot>),
    Flows(FlowFilter, Answer<Vec<FlowView>>),
    Lookup(LookupQuery, Answer<LookupView>),
    Drain(BackendSelector, Answer<Changed>),
    Undrain(BackendSelector, Answer<Changed>),
    /// `None` removes the override.
    SetWeight(BackendSelector, Option<u32>, Answer<Changed>),
    Diff(Answer<Vec<DiffView>>),
    /// Streams the BPF programs' decisions as they are made, until the receiver is dropped or the
    /// agent stops.
    Trace(TraceQuery, Answer<mpsc::Receiver<TraceView>>),
    /// Reads the file again; with `accept_loss`, applies it even if that moves connections.
    Reload {
        accept_loss: bool,
        answer: Answer<Changed>,
    },
}

pub type Answer<T> = oneshot::Sender<Result<T, ApiError>>;

#[derive(Clone, Debug)]
pub struct AgentHandle(mpsc::Sender<Command>);

impl AgentHandle {
    /// Returns a handle, and the receiver for the agent.
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(64);
        (Self(commands), receiver)
    }

    pub async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Command::Snapshot(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }

    /// Sends the command that `command` builds from the answer's channel, and waits for the answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

fn stopping() -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message: "the agent is stopping".to_owned() }
}
