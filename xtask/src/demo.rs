//! `cargo xtask demo`: builds what the demo needs and runs the demo of the crate `weir-tests`.

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
    /// Leave everything running at the end, and print how to explore it.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what `--keep` left running, and exit.
    #[arg(long)]
    clean: bool,
}

pub fn run_demo(arguments: &Arguments) -> Result<()> {
    let flags = [(arguments.json, "--json"), (arguments.keep, "--keep"), (arguments.clean, "--clean")];
    let given = flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag.to_owned());
    hand_over("demo", given)
}

/// Builds what a program of the crate `weir-tests` needs, and replaces xtask with that program.
pub fn hand_over(program: &str, arguments: impl IntoIterator<Item = String>) -> Result<()> {
    hand_over_with(program, "debug", arguments)
}

/// Like [`hand_over`], with the `weir` of a build profile, `debug` or `release`. The program itself
/// is always the `debug` one.
pub fn hand_over_with(program: &str, profile: &str, arguments: impl IntoIterator<Item = String>) -> Result<()> {
    if !exec::is_root() {
        bail!("{program} makes network namespaces and loads BPF programs: run it as root");
    }
    setup::programs()?;
    ebpf::build()?;
    run(&mut host_cargo(["build", "-p", "lb-userspace", "-p", "weir-tests", "--bins"]))?;
    if profile == "release" {
        run(&mut host_cargo(["build", "-p", "lb-userspace", "--release"]))?;
    }
    let path = exec::target().join("debug").join(program);
    say(program, path.display());
    let mut command = std::process::Command::new(&path);
    command.args(arguments).env("PATH", exec::path_with_sbin()?);
    // exec replaces this process, so that signals reach the program, and its exit status is
    // xtask's.
    Err(command.env("WEIR_BIN", exec::target().join(profile).join("weir")).exec())
        .with_context(|| format!("can't start {}", path.display()))
}
