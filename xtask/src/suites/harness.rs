//! Runs a test program, shows its output as it comes, and counts the results.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::exec::shown;

/// The results of test programs, read from their output.
#[derive(Debug, Default)]
pub struct Account {
    pub passed: u64,
    pub failed: u64,
    /// The name and duration of each test.
    pub times: Vec<(String, Duration)>,
    /// The last lines of each error or panic that the tests printed.
    pub reasons: Vec<String>,
    /// The lines so far of an error whose end has not been read yet.
    reading: Vec<String>,
}

impl Account {
    /// The slowest tests, longest first.
    pub fn slowest(&self, count: usize) -> Vec<(String, Duration)> {
        let mut times = self.times.clone();
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        times.truncate(count);
        times
    }

    /// Counts a line of the harness's output.
    fn note(&mut self, line: &str) {
        if let Some((passed, failed)) = totals(line) {
            self.passed += passed;
            self.failed += failed;
        }
        self.times.extend(timed(line));
        self.read_reason(line);
    }

    /// Collects the lines of an error: from the returned error or the panic message up to the test
    /// harness's next line or a backtrace.
    fn read_reason(&mut self, line: &str) {
        let is_begin =
            line.starts_with("Error: ") || line.contains("' panicked at ") || line.contains(") panicked at ");
        let is_end =
            line.starts_with("test ") || line.starts_with("---- ") || line.to_lowercase() == "stack backtrace:";
        if (is_begin || is_end) && !self.reading.is_empty() {
            self.end_reason();
        }
        if is_begin || (!self.reading.is_empty() && !line.trim().is_empty()) {
            self.reading.push(line.to_owned());
        }
    }

    fn end_reason(&mut self) {
        let lines = std::mem::take(&mut self.reading);
        let skipped = lines.len().saturating_sub(REASON_LINES);
        let shown = lines.iter().skip(skipped).map(String::as_str).collect::<Vec<_>>().join("\n");
        if !shown.is_empty() && self.reasons.len() < REASONS {
            self.reasons.push(shown);
        }
    }
}

/// The maximum number of lines that are kept of an error: its last ones, which name its causes.
const REASON_LINES: usize = 8;
/// The maximum number of errors that are kept.
const REASONS: usize = 10;

/// Runs the test program; returns whether it succeeded.
pub fn run(command: &mut Command, account: &mut Account) -> Result<bool> {
    // Test times are an unstable feature of libtest; this variable enables them.
    command.env("RUSTC_BOOTSTRAP", "1").args(["-Zunstable-options", "--report-time"]);
    if std::io::stdout().is_terminal() {
        command.arg("--color=always");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't start {}", shown(command)))?;
    let output = child.stdout.take().context("the test program's stdout is not a pipe")?;
    let failed_before = account.failed;
    copy_and_count(output, account)?;
    let status = child.wait().with_context(|| format!("can't wait for {}", shown(command)))?;
    Ok(status.success() && account.failed == failed_before)
}

/// Copies the output to stdout unchanged, as it comes, and counts the results in it.
fn copy_and_count(output: impl std::io::Read, account: &mut Account) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        // Read in chunks, not in lines, so that `test name ... ` is shown before the test's result.
        let chunk = output.fill_buf().context("can't read the tests' output")?;
        if chunk.is_empty() {
            account.end_reason();
            return Ok(());
        }
        stdout.write_all(chunk).and_then(|()| stdout.flush()).context("can't write to stdout")?;
        for byte in chunk {
            if *byte == b'\n' {
                account.note(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        let read = chunk.len();
        output.consume(read);
    }
}

/// The passed and failed counts of a line like `test result: ok. 12 passed; 0 failed; 0 ignored;
/// ...`.
fn totals(line: &str) -> Option<(u64, u64)> {
    let (_, line) = line.split_once("test result: ")?;
    let count = |what: &str| {
        let before = line.split_once(what)?.0.trim_end();
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some((count(" passed;").unwrap_or(0), count(" failed;").unwrap_or(0)))
}

/// The name and duration of a line like `test a::b ... ok <1.234s>`.
fn timed(line: &str) -> Option<(String, Duration)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (_, time) = rest.rsplit_once('<')?;
    let seconds = time.split_once("s>")?.0.parse().ok()?;
    // The name may have a suffix: `test name - should panic ...`
    let name = name.split_once(" - ").map_or(name, |(name, _)| name);
    Some((name.to_owned(), Duration::try_from_secs_f64(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_only_the_closing_lines_of_the_harness() {
        let closing =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(totals(closing), Some((12, 3)));
        assert_eq!(totals("test result: \u{1b}[32mok\u{1b}[m. 1 passed; 0 failed; 0 ignored"), Some((1, 0)));
        assert_eq!(totals("12 passed; 3 failed;"), None);
    }

    #[test]
    fn end_of_each_error_is_repeated_without_its_backtrace() {
        let mut account = Account::default();
        let journal: Vec<String> = (0..20).map(|number| format!("journal {number}")).collect();
        let journal = journal.iter().map(String::as_str);
        let error = ["Error: the unit and its journal:"].into_iter().chain(journal).chain([
            "",
            "Caused by:",
            "    0: Linux 6.1: the filter is put back",
            "    1: it does not hold within 20s",
            "test debian ... FAILED <1.000s>",
            "thread 'a::b' (17) panicked at src/a.rs:1:2:",
            "assertion failed: x",
            "stack backtrace:",
            "   0: core::panicking",
        ]);
        error.for_each(|line| account.note(line));
        account.end_reason();
        let [error, panic] = <[String; 2]>::try_from(account.reasons).unwrap();
        assert!(error.starts_with("journal 15\n") && error.ends_with("1: it does not hold within 20s"), "{error}");
        assert_eq!(panic, "thread 'a::b' (17) panicked at src/a.rs:1:2:\nassertion failed: x");
    }

    #[test]
    fn slowest_tests_come_first() {
        let mut account = Account::default();
        for line in [
            "test quick ... ok <0.001s>",
            "test a::slow ... \u{1b}[32mok\u{1b}(B\u{1b}[m <12.500s>",
            "test a::broken ... FAILED <3.000s>",
            "test a::left_out ... ignored",
            "a line of a test itself",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 15.60s",
        ] {
            account.note(line);
        }
        assert_eq!((account.passed, account.failed), (2, 1));
        let slowest = account.slowest(2);
        let named = |name: &str, millis| (name.to_owned(), Duration::from_millis(millis));
        assert_eq!(slowest, [named("a::slow", 12_500), named("a::broken", 3000)]);
    }
}
