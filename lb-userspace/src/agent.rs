//! The agent: one task that owns the BPF maps and brings them to the desired state (`owner`), the
//! tasks that report the actual state to it, and the reader, which answers everything that changes
//! nothing.

pub(crate) mod audit;
pub(crate) mod desired;
pub(crate) mod examine;
pub(crate) mod flows;
pub mod handle;
pub(crate) mod heap;
pub(crate) mod keep;
pub(crate) mod node;
mod overriding;
pub(crate) mod owner;
mod passes;
mod published;
pub(crate) mod read;
pub(crate) mod reload;
pub(crate) mod report;
mod select;
pub(crate) mod settle;
pub(crate) mod trace;
mod warmup;
pub(crate) mod writer;

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
