//! `cargo xtask demo`: builds what it needs and hands over to the demo of the crate `weir-tests`.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    ebpf,
    exec::{self, host_cargo, run, say},
    setup,
};

#[derive(Args)]
pub struct Arguments {
    /// Print one JSON document on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end, and say how to look around.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what `--keep` has left, and end.
    #[arg(long)]
    clean: bool,
}

pub fn run_demo(arguments: &Arguments) -> Result<()> {
    if !exec::is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    setup::programs()?;
    ebpf::build()?;
    run(&mut host_cargo(["build", "-p", "lb-userspace", "-p", "weir-tests", "--bins"]))?;
    let demo = exec::target().join("debug/demo");
    say("demo", demo.display());
    let mut command = std::process::Command::new(&demo);
    for (given, flag) in [(arguments.json, "--json"), (arguments.keep, "--keep"), (arguments.clean, "--clean")] {
        if given {
            command.arg(flag);
        }
    }
    command.env("PATH", exec::path_with_sbin()?);
    // Replaced by the demo, so that its exit status and signals are the command's own.
    Err(command.env("WEIR_BIN", exec::target().join("debug/weir")).exec())
        .with_context(|| format!("can't start {}", demo.display()))
}
