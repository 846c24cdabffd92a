//! `weir agent`: runs the agent in the foreground.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;

use super::{config::DEFAULT_CONFIG, logging::Logging};
use crate::{
    agent::AgentOptions,
    assembly,
    dataplane::{bpffs::PIN_DIR, load::BpfLog},
    heap,
};

/// Run the agent: program the data path from a configuration file, and keep it so
///
/// It follows the file; SIGHUP reads it at once. SIGTERM and SIGINT end the agent and leave the
/// data path forwarding: only `weir cleanup` takes that away. A file with mistakes is refused with
/// all of them, and what is running stays as it is.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir agent --config /etc/weir/weir.yaml
  weir agent --config ./weir.yaml --state-dir ./state --log-level debug")]
pub struct Agent {
    /// The configuration file
    #[arg(short, long, env = "WEIR_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Where a generated hash seed and what the CLI sets are kept
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "DIR", default_value = "/var/lib/weir")]
    state_dir: PathBuf,
    /// Where maps and links are pinned; must be on a bpffs
    #[arg(long, env = "WEIR_PIN_DIR", value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// Log what the eBPF program says of single packets
    #[arg(long, env = "WEIR_BPF_LOG")]
    bpf_log: bool,
    #[command(flatten)]
    logging: Logging,
}

impl Agent {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        self.logging.start()?;
        heap::share();
        let options = AgentOptions {
            config: self.config,
            state_dir: self.state_dir,
            pin_dir: self.pin_dir,
            bpf_log: if self.bpf_log { BpfLog::Debug } else { BpfLog::Off },
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the agent's event loop")?;
        runtime.block_on(assembly::run(options))?;
        Ok(ExitCode::SUCCESS)
    }
}
