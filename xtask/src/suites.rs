//! The tests, by suite, with a summary at the end.

use std::{
    fmt,
    io::{BufRead, BufReader, IsTerminal, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    ebpf,
    exec::{self, host_cargo, run, say, shown},
    guest, setup,
};

#[derive(Args)]
pub struct Arguments {
    /// The suites to run; all if none is named.
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// The long runs as well: five million packets of each flood, and what is nearly the same again.
    #[arg(long)]
    long: bool,
    /// Handed on to the tests: a part of a test's name, `--nocapture`, ...
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Suite {
    /// What needs no root: pure logic, properties, command lines.
    Unit,
    /// The programs, one packet at a time, by BPF_PROG_TEST_RUN; hooks and maps on this kernel; that the bench runs. Needs root.
    Packet,
    /// Real connections to real servers in network namespaces. Needs root.
    E2e,
    /// Installed by the documented commands on a Debian with systemd, on each older kernel that is supported, in QEMU. Needs root.
    Guest,
}

pub fn run_suites(arguments: &Arguments) -> Result<()> {
    let mut suites =
        if arguments.suites.is_empty() { Suite::value_variants().to_vec() } else { arguments.suites.clone() };
    suites.sort();
    suites.dedup();

    if exec::is_root() || suites.contains(&Suite::Unit) {
        ebpf::build()?;
    }
    if exec::is_root() && suites != [Suite::Unit] {
        setup::programs()?;
        // Its wrapper makes the floods of the end-to-end suite, too.
        ebpf::build_bench()?;
    }
    if exec::is_root() && suites.contains(&Suite::E2e) {
        guest::setup()?;
    }
    let outcomes = suites.into_iter().map(|suite| run_suite(suite, arguments)).collect::<Result<Vec<_>>>()?;
    for outcome in &outcomes {
        say("test", outcome);
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

    fn cargos(self) -> Vec<Command> {
        match self {
            Suite::Unit => vec![
                host_cargo(["test", "--workspace", "--exclude", "weir-tests", "--no-fail-fast"]),
                host_cargo(["test", "-p", "weir-tests", "--lib", "--bins", "--no-fail-fast"]),
            ],
            Suite::Packet => {
                vec![host_cargo([
                    "test",
                    "-p",
                    "weir-tests",
                    "--test",
                    "packet",
                    "--test",
                    "model",
                    "--test",
                    "dataplane",
                    "--test",
                    "bench",
                    "--no-fail-fast",
                ])]
            }
            Suite::E2e => vec![host_cargo(["test", "-p", "weir-tests", "--test", "e2e"])],
            Suite::Guest => vec![host_cargo(["test", "-p", "weir-tests", "--test", "guest"])],
        }
    }
}

struct Outcome {
    suite: Suite,
    ok: bool,
    passed: u64,
    failed: u64,
    time: Duration,
    note: &'static str,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, ok, passed, failed, time, note } = self;
        let verdict = if *ok { "ok" } else { "FAILED" };
        write!(f, "{:<6} {verdict}", suite.name())?;
        if note.is_empty() {
            write!(f, ", {passed} passed, {failed} failed, {:.0} s", time.as_secs_f32())
        } else {
            write!(f, ": {note}")
        }
    }
}

fn run_suite(suite: Suite, arguments: &Arguments) -> Result<Outcome> {
    let rest = &arguments.rest;
    let started = Instant::now();
    let mut outcome = Outcome { suite, ok: false, passed: 0, failed: 0, time: Duration::ZERO, note: "" };
    if suite != Suite::Unit && !exec::is_root() {
        outcome.note = "needs root (network namespaces, BPF): run it as root";
        return Ok(outcome);
    }
    if suite == Suite::Guest {
        guest::images()?;
    }
    if matches!(suite, Suite::E2e | Suite::Guest) {
        build_both_layouts()?;
    }
    let packet_suite = if suite == Suite::Guest { Some(packet_suite()?) } else { None };

    outcome.ok = true;
    for mut cargo in suite.cargos() {
        cargo
            .env("WEIR_BIN", exec::target().join("debug/weir"))
            .env("WEIR_OTHER_BIN", exec::target().join("debug/weir-other-layout"))
            .env("WEIR_GUEST", guest::cache()?)
            .env("PATH", exec::path_with_sbin()?)
            .arg("--")
            .args(rest);
        if arguments.long {
            cargo.env("WEIR_LONG", "1").arg("--include-ignored");
        }
        match (suite, &packet_suite) {
            (Suite::Unit, _) => {}
            // Each guest has one processor, and the tests tell of their steps as they go.
            (Suite::Guest, Some(packet_suite)) => {
                cargo.env("WEIR_PACKET_SUITE", packet_suite).args(["--test-threads=2", "--nocapture"]);
            }
            // One bed at a time: two would share the processors and blur what is counted by time.
            _ => {
                cargo.arg("--test-threads=1");
            }
        }
        if std::io::stdout().is_terminal() {
            cargo.arg("--color=always");
        }
        cargo.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = cargo.spawn().with_context(|| format!("can't start {}", shown(&cargo)))?;
        let output = child.stdout.take().context("cargo's output is gone")?;
        copy_and_count(output, &mut outcome)?;
        let status = child.wait().with_context(|| format!("can't wait for {}", shown(&cargo)))?;
        outcome.ok &= status.success() && outcome.failed == 0;
    }
    outcome.time = started.elapsed();
    if outcome.ok && outcome.passed == 0 && rest.is_empty() {
        outcome.ok = false;
        outcome.note = "no test was run";
    }
    Ok(outcome)
}

/// Builds `weir`, and beside it the one with the other layout of maps, to and from which a test upgrades.
fn build_both_layouts() -> Result<()> {
    ebpf::build_other_layout()?;
    let build = ["build", "-p", "lb-userspace", "--bin", "weir"];
    run(host_cargo(build).args(["--features", "other-layout"]))?;
    let dir = exec::target().join("debug");
    let (built, kept) = (dir.join("weir"), dir.join("weir-other-layout"));
    // A hard link to cargo's own file would change with the next build.
    std::fs::copy(&built, &kept).with_context(|| format!("can't copy {} to {}", built.display(), kept.display()))?;
    run(&mut host_cargo(build))
}

/// Builds the packet suite, which guests run as well; the path of its program.
fn packet_suite() -> Result<PathBuf> {
    let mut cargo = host_cargo(["test", "-p", "weir-tests", "--test", "packet", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("can't start {}", shown(&cargo)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shown(&cargo), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut executables = text.lines().filter_map(|line| {
        let (_, after) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(after.split('"').next()?))
    });
    executables.next_back().context("cargo does not say where the packet suite's program is")
}

/// Shows the harness's output as it comes, byte by byte as it was, and adds up its closing lines.
fn copy_and_count(output: impl std::io::Read, outcome: &mut Outcome) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        // By chunks and not by lines: `test name ... ` is shown before its verdict comes.
        let chunk = output.fill_buf().context("can't read the tests' output")?;
        if chunk.is_empty() {
            return Ok(());
        }
        stdout.write_all(chunk).and_then(|()| stdout.flush()).context("can't write to stdout")?;
        for byte in chunk {
            if *byte == b'\n' {
                let (passed, failed) = totals(&String::from_utf8_lossy(&line));
                outcome.passed += passed;
                outcome.failed += failed;
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        let read = chunk.len();
        output.consume(read);
    }
}

/// Passed and failed of a line like `test result: ok. 12 passed; 0 failed; 0 ignored; ...`; zeros for any other line.
fn totals(line: &str) -> (u64, u64) {
    let Some((_, line)) = line.split_once("test result: ") else { return (0, 0) };
    let count = |what: &str| {
        let before = line.split_once(what)?.0.trim_end();
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    (count(" passed;").unwrap_or(0), count(" failed;").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::totals;

    #[test]
    fn adds_up_only_the_closing_lines_of_the_harness() {
        let closing =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(totals(closing), (12, 3));
        assert_eq!(totals("test result: \u{1b}[32mok\u{1b}[m. 1 passed; 0 failed; 0 ignored"), (1, 0));
        assert_eq!(totals("12 passed; 3 failed;"), (0, 0));
    }
}
