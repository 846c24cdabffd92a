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

/// Run the agent: program the data path from a configuration file, and keep it up to date
///
/// The agent follows changes of the file; SIGHUP makes it read the file at once. SIGTERM and SIGINT
/// end the agent, and the data path continues to forward packets: only `weir cleanup` detaches it.
/// If the file has mistakes, the agent reports all of them and keeps the running configuration.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir agent --config /etc/weir/weir.yaml
  weir agent --config ./weir.yaml --state-dir ./state --log-level debug")]
pub struct Agent {
    /// The configuration file
    #[arg(short, long, env = "WEIR_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Directory for a generated hash seed and for settings made with the CLI
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "DIR", default_value = "/var/lib/weir")]
    state_dir: PathBuf,
    /// Directory for pinned maps and links; must be on a BPF file system
    #[arg(long, env = "WEIR_PIN_DIR", value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// Log the eBPF program's messages about single packets
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
