//! Runs the tests by suite, with a summary at the end.

use std::{
    fmt,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use self::{build::Binary, harness::Account};
use crate::{
    ebpf,
    exec::{self, say},
    guest, other_layout, setup,
};

pub mod build;
mod harness;

#[derive(Args)]
pub struct Arguments {
    /// The suites to run; all if none is named.
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Run the tests at full length, such as floods of five million packets, and also tests that
    /// are nearly the same as others.
    #[arg(long)]
    long: bool,
    /// Arguments for the test programs: a part of a test's name, `--nocapture`, ...
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
enum Suite {
    /// Tests that need no root: pure logic, properties, command lines.
    Unit,
    /// The eBPF programs, one packet at a time by BPF_PROG_TEST_RUN; the model of the ring's rules;
    /// hooks and maps on this kernel; a short run of the benchmark. Needs root.
    Packet,
    /// Real connections to real servers in network namespaces. Needs root.
    E2e,
    /// Weir on Debian with systemd in QEMU, installed by the documented commands, on each older
    /// kernel that Weir supports. Needs root.
    Guest,
}

/// How many of a suite's slowest tests are listed.
const SLOWEST: usize = 10;

pub fn run_suites(arguments: &Arguments) -> Result<()> {
    let mut suites =
        if arguments.suites.is_empty() { Suite::value_variants().to_vec() } else { arguments.suites.clone() };
    suites.sort();
    suites.dedup();
    let needs_root = suites.iter().any(|suite| suite.needs_root());
    let upgrades = suites.iter().any(|suite| suite.upgrades());

    let mut binaries = Vec::new();
    if exec::is_root() || suites.contains(&Suite::Unit) {
        ebpf::build()?;
        if exec::is_root() && needs_root {
            setup::programs()?;
            // The end-to-end suite makes its packet floods with the benchmark's wrapper program.
            ebpf::build_bench()?;
        }
        if exec::is_root() && upgrades {
            guest::setup()?;
            other_layout::build()?;
        }
        binaries = build::tests()?;
    }
    let outcomes =
        suites.into_iter().map(|suite| run_suite(suite, &binaries, arguments)).collect::<Result<Vec<_>>>()?;
    for outcome in &outcomes {
        say("test", outcome);
        for (name, time) in outcome.account.slowest(SLOWEST) {
            say("", format_args!("{:>7.1} s  {name}", time.as_secs_f32()));
        }
    }
    // Print the errors last, because often only the end of a log is kept.
    for reason in outcomes.iter().flat_map(|outcome| &outcome.account.reasons) {
        say("why", reason);
    }
    let failed: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.ok).map(|outcome| outcome.suite.name()).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Suite::Unit => "unit",
            Suite::Packet => "packet",
            Suite::E2e => "e2e",
            Suite::Guest => "guest",
        }
    }

    fn needs_root(self) -> bool {
        self != Suite::Unit
    }

    /// Whether the suite's tests upgrade to a `weir` with another map layout. Such suites also boot
    /// guests.
    const fn upgrades(self) -> bool {
        matches!(self, Suite::E2e | Suite::Guest)
    }

    /// Whether this test program belongs to the suite.
    fn has(self, binary: &Binary) -> bool {
        let is_one_of = |names: &[&str]| binary.is_integration && names.contains(&binary.target.as_str());
        match (self, binary.package()) {
            (Suite::Unit, package) => package != "tests" || !binary.is_integration,
            (Suite::Packet, "tests") => is_one_of(&["packet", "model", "dataplane", "bench"]),
            (Suite::E2e, "tests") => is_one_of(&["e2e"]),
            (Suite::Guest, "tests") => is_one_of(&["guest"]),
            _ => false,
        }
    }

    /// Each test program of the suite is run once with each of these lists of arguments.
    fn runs(self) -> &'static [&'static [&'static str]] {
        match self {
            Suite::Unit => &[&[]],
            // These tests mostly use CPU time, so they run one at a time.
            Suite::Packet => &[&["--test-threads=1"]],
            // Most tests spend their time waiting, so several test beds run in parallel. Tests that
            // use all processors, or that check durations (`dead`, `traffic`), then run one at a
            // time.
            Suite::E2e => &[
                &[
                    "--test-threads=3",
                    "--skip=churn::",
                    "--skip=dead::",
                    "--skip=deluge::",
                    "--skip=ecmp::",
                    "--skip=ipip::",
                    "--skip=limits::",
                    "--skip=traffic::",
                    "--skip=upgrade::",
                    "--skip=volume::",
                ],
                &[
                    "--test-threads=1",
                    "--skip=agent::",
                    "--skip=bed::",
                    "--skip=modes::",
                    "--skip=node::",
                    "--skip=see::",
                    "--skip=stack::",
                    "--skip=supervised::",
                ],
            ],
            // Each guest has one processor, and the tests print their steps as they run.
            Suite::Guest => &[&["--test-threads=2", "--nocapture"]],
        }
    }
}

struct Outcome {
    suite: Suite,
    ok: bool,
    account: Account,
    time: Duration,
    note: &'static str,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, ok, account, time, note } = self;
        let verdict = if *ok { "ok" } else { "FAILED" };
        write!(f, "{:<6} {verdict}", suite.name())?;
        if note.is_empty() {
            write!(f, ", {} passed, {} failed, {:.0} s", account.passed, account.failed, time.as_secs_f32())
        } else {
            write!(f, ": {note}")
        }
    }
}

fn run_suite(suite: Suite, binaries: &[Binary], arguments: &Arguments) -> Result<Outcome> {
    let rest = &arguments.rest;
    let started = Instant::now();
    let mut outcome = Outcome { suite, ok: false, account: Account::default(), time: Duration::ZERO, note: "" };
    if suite.needs_root() && !exec::is_root() {
        outcome.note = "needs root (network namespaces, BPF): run it as root";
        return Ok(outcome);
    }
    if suite == Suite::Guest {
        guest::images()?;
    }
    outcome.ok = true;
    for binary in binaries.iter().filter(|binary| suite.has(binary)) {
        for run in suite.runs() {
            let mut command = Command::new(&binary.path);
            command.args(*run).args(rest).current_dir(&binary.dir);
            set_environment(&mut command, binary, binaries)?;
            if arguments.long {
                command.env("WEIR_LONG", "1").arg("--include-ignored");
            }
            say("test", format_args!("{} {}: {}", suite.name(), binary.target, exec::shown(&command)));
            outcome.ok &= harness::run(&mut command, &mut outcome.account)?;
        }
    }
    outcome.time = started.elapsed();
    if outcome.ok && outcome.account.passed == 0 && rest.is_empty() {
        outcome.ok = false;
        outcome.note = "no test was run";
    }
    Ok(outcome)
}

/// Sets the variables that tell the tests where to find the two builds of `weir`, the guests, and
/// the packet suite to run in the guests.
fn set_environment(command: &mut Command, binary: &Binary, binaries: &[Binary]) -> Result<()> {
    let packet = binaries.iter().find(|other| other.is_integration && other.target == "packet");
    command
        .env("CARGO_MANIFEST_DIR", &binary.dir)
        .env("WEIR_BIN", exec::target().join("debug/weir"))
        .env("WEIR_OTHER_BIN", exec::target().join("debug/weir-other-layout"))
        .env("WEIR_GUEST", guest::cache()?)
        .env("WEIR_PACKET_SUITE", &packet.context("cargo built no packet suite")?.path)
        .env("PATH", exec::path_with_sbin()?)
        // Without a backtrace, a test's output ends with the causes of its error, which are more
        // useful.
        .env("RUST_LIB_BACKTRACE", "0")
        // Use the object that xtask builds, even if the environment names another one.
        .env_remove("WEIR_BPF_OBJECT");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_to_end_test_is_run_once() {
        let main = std::fs::read_to_string(exec::root().join("tests/tests/e2e/main.rs")).unwrap();
        // Modules without tests of their own: code that the tests share.
        let helpers = ["scene", "stage"];
        let modules = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        for module in modules.filter(|module| !helpers.contains(module)) {
            let skip = format!("--skip={module}::");
            let runs = Suite::E2e.runs().iter().filter(|run| !run.contains(&skip.as_str())).count();
            assert_eq!(runs, 1, "the number of runs of {:?} that include {module}", Suite::E2e);
        }
    }
}
