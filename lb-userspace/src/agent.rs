//! The agent: one task that owns the BPF maps and brings them to the desired state, and the tasks
//! that report the actual state to it.

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

use crate::dataplane::load::BpfLog;

/// The options that the agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub config: PathBuf,
    /// Directory for a generated seed and for the overrides set by the CLI.
    pub state_dir: PathBuf,
    /// Directory where maps and links are pinned; on a bpffs.
    pub pin_dir: PathBuf,
    pub bpf_log: BpfLog,
}
