//! `cargo xtask`: everything that a checkout needs, from the eBPF toolchain to the tests. What it says goes to stderr, so that
//! `demo --json` has stdout for itself.

mod demo;
mod ebpf;
mod exec;
mod lint;
mod packages;
mod setup;
mod suites;
mod toolchain;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};

fn main() -> ExitCode {
    exec::outlive_interrupts();
    match Xtask::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds, tests and demonstrates Weir.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the eBPF toolchain and the programs that the demo and the tests run.
    ///
    /// The other commands call it for what they need. As root on Debian it installs what is missing; elsewhere it says the command.
    Setup,
    /// Build the eBPF object, target/ebpf/weir.bpf.o.
    BuildEbpf,
    /// Build the eBPF object and the `weir` binary that embeds it.
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Show Weir at work: a client, a balancer and three servers in network namespaces, real HTTP. Needs root.
    Demo(demo::Arguments),
    /// Measure; prints ratios, judges nothing. Needs root.
    #[command(subcommand)]
    Bench(Bench),
    /// Run the tests; all suites if none is named. `packet` and `e2e` need root.
    Test(suites::Arguments),
    /// Check the format, and lint for the host and for the BPF target.
    Lint,
}

#[derive(Subcommand)]
enum Bench {
    /// wrk through `nat` against wrk through a plain router, on beds alike that take turns.
    Http {
        /// Handed on: `--rounds N`, `--seconds N`, `--connections N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Command::Setup => setup::everything(),
            Command::BuildEbpf => ebpf::build().map(drop),
            Command::Build { release } => build(release),
            Command::Demo(arguments) => demo::run_demo(&arguments),
            Command::Bench(Bench::Http { arguments }) => demo::hand_over("compare", arguments),
            Command::Test(arguments) => suites::run_suites(&arguments),
            Command::Lint => lint::run_all(),
        }
    }
}

fn build(release: bool) -> Result<()> {
    let started = Instant::now();
    ebpf::build()?;
    let mut cargo = exec::host_cargo(["build", "-p", "lb-userspace"]);
    if release {
        cargo.arg("--release");
    }
    exec::run(&mut cargo)?;
    let binary = exec::target().join(if release { "release" } else { "debug" }).join("weir");
    exec::say("built", format_args!("{} in {:.1} s", binary.display(), started.elapsed().as_secs_f32()));
    Ok(())
}
