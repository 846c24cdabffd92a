//! `cargo xtask`: sets up the tools, then builds, tests, lints and measures Weir. Messages go to
//! stderr, so that stdout has only results, such as the document of `demo --json`.

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
    /// kernel for guests (the virtual machines of tests).
    ///
    /// The other commands do the same for what they need. As root on Debian, this installs what is
    /// missing; otherwise it fails and prints the command that installs it.
    Setup,
    /// Build the eBPF object, target/ebpf/weir.bpf.o.
    BuildEbpf,
    /// Build the eBPF object and the `weir` binary that embeds it.
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Demonstrate Weir with a client, a load balancer and three HTTP servers in network
    /// namespaces. Needs root.
    Demo(demo::Arguments),
    /// Run a benchmark; a slow result is never a failure. Needs root.
    #[command(subcommand)]
    Bench(Bench),
    /// Run the tests; all suites if none is named. All but `unit` need root.
    Test(suites::Arguments),
    /// Remove the rules of the ring from a copy of the sources, one at a time, and check that the
    /// tests fail without the rule. Takes minutes for each rule. Needs root.
    Mutate(mutate::Arguments),
    /// Check formatting, dependencies between modules and licences, and run clippy for the host and
    /// for the BPF target.
    Lint,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds per packet, measured with BPF_PROG_TEST_RUN and compared with the floor: a
    /// program that only encapsulates. The table, or the document of `--json`, goes to stdout.
    Packet {
        /// Options of the benchmark: `--json`, `--markdown`, `--quick`, `--rounds N`,
        /// `--packets N`, `--only TEXT`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Frames per second through veth pairs: Weir in each DSR mode, compared with a program that
    /// only redirects. The programs take turns.
    Forward {
        /// Options of the benchmark: `--markdown`, `--rounds N`, `--packets N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Cost of the agent (release build) with 1,000 services of 16 backends: the time from a change
    /// until the last slot is written, CPU time when idle and with probes, memory, and start time,
    /// each beside its target. Takes some minutes.
    Control {
        /// Options of the benchmark: `--json`, `--services N`, `--backends N`, `--ring N`,
        /// `--default-limits`, `--mode nat|dsr-ipip|mixed`, `--no-probes`, `--probes-only`,
        /// `--changes N`, `--seconds N`, `--interval MS`, `--flips N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// HTTP requests by wrk through Weir in mode `nat`, compared with a plain router. The two run
    /// in identical test beds and take turns.
    Http {
        /// Options of the benchmark: `--rounds N`, `--seconds N`, `--connections N`.
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

/// Measures the release build, which is the one that users run.
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
