//! `cargo xtask`: everything that a checkout needs, from the eBPF toolchain to the tests. Messages
//! go to stderr, so that stdout is free for the output of `demo --json`.

mod demo;
mod ebpf;
mod exec;
mod guest;
mod lint;
mod mutate;
mod other_layout;
mod packages;
mod setup;
mod suites;
mod toolchain;
mod tree;

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
    /// Find or install the eBPF toolchain, the programs that the demo and the tests run, and a
    /// kernel for guests.
    ///
    /// The other commands call it for what they need. As root on Debian it installs what is
    /// missing; elsewhere it says the command.
    Setup,
    /// Build the eBPF object, target/ebpf/weir.bpf.o.
    BuildEbpf,
    /// Build the eBPF object and the `weir` binary that embeds it.
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Show Weir at work: a client, a balancer and three servers in network namespaces, real HTTP.
    /// Needs root.
    Demo(demo::Arguments),
    /// Measure; prints ratios, judges nothing. Needs root.
    #[command(subcommand)]
    Bench(Bench),
    /// Run the tests; all suites if none is named. All but `unit` need root.
    Test(suites::Arguments),
    /// Leave out one rule of the ring after the other, and look whether the tests notice: minutes
    /// for each. Needs root.
    Mutate(mutate::Arguments),
    /// Check the format, and lint for the host and for the BPF target.
    Lint,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds a packet by BPF_PROG_TEST_RUN, beside a floor that only encapsulates. The table,
    /// or `--json`, goes to stdout.
    Packet {
        /// Handed on: `--json`, `--markdown`, `--quick`, `--rounds N`, `--packets N`,
        /// `--only TEXT`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Live frames through veth: Weir in each DSR mode against a program that only redirects, in
    /// turns.
    Forward {
        /// Handed on: `--markdown`, `--rounds N`, `--packets N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The agent, built for release, with 1,000 services of 16 backends: from a change to the last
    /// slot, processor time at rest and with probes, memory, start; each beside its target. Some
    /// minutes.
    Control {
        /// Handed on: `--json`, `--services N`, `--backends N`, `--ring N`, `--default-limits`,
        /// `--mode nat|dsr-ipip|mixed`, `--no-probes`, `--probes-only`, `--changes N`,
        /// `--seconds N`, `--interval MS`, `--flips N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
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
            Command::Bench(Bench::Packet { arguments }) => bench("packet", arguments),
            Command::Bench(Bench::Forward { arguments }) => bench("forward", arguments),
            Command::Bench(Bench::Control { arguments }) => bench_control(arguments),
            Command::Bench(Bench::Http { arguments }) => demo::hand_over("compare", arguments),
            Command::Test(arguments) => suites::run_suites(&arguments),
            Command::Mutate(arguments) => mutate::run_all(&arguments),
            Command::Lint => lint::run_all(),
        }
    }
}

fn bench(what: &str, arguments: Vec<String>) -> Result<()> {
    ebpf::build_bench()?;
    demo::hand_over("bench", std::iter::once(what.to_owned()).chain(arguments))
}

/// It measures the agent as it is shipped.
fn bench_control(arguments: Vec<String>) -> Result<()> {
    demo::hand_over_with("bench", "release", std::iter::once("control".to_owned()).chain(arguments))
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
