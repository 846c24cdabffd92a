//! The agent: one task that owns the maps and makes them say what is wanted, and the tasks that
//! tell it what there is.

mod commands;
pub(crate) mod core;
mod diff;
mod digests;
pub(crate) mod examine;
pub(crate) mod flows;
pub mod handle;
mod lookup;
pub(crate) mod node;
mod queries;
mod reconcile;
mod reload;
mod report;
mod select;
pub(crate) mod settle;
mod snapshot;
pub(crate) mod trace;
mod wanted;
mod warmup;

use std::path::PathBuf;

use tokio::sync::watch;

use crate::dataplane::load::BpfLog;

/// What the agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub config: PathBuf,
    /// Where a generated seed and what was set by the CLI are kept.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned; on a bpffs.
    pub pin_dir: PathBuf,
    pub bpf_log: BpfLog,
}

/// Ends when the agent is to stop.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: the same end.
    drop(shutdown.wait_for(|stop| *stop).await);
}
