//! Runs other programs, and reports progress.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{BufRead, BufReader, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// The root of the workspace.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The directory for cargo's host builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// PATH with Debian's `sbin` directories, which `su` leaves out.
pub fn path_with_sbin() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::join_paths(std::env::split_paths(&path).chain(sbin)).context("can't add /usr/sbin and /sbin to PATH")
}

/// Prints one line about what was done or found.
pub fn say(what: &str, line: impl fmt::Display) {
    eprintln!("{what:>10}  {line}");
}

/// The cargo that runs xtask, for the host part of the workspace.
pub fn host_cargo(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Use the object that xtask builds, even if the environment names another one.
    cargo.current_dir(root()).args(arguments).env_remove("WEIR_BPF_OBJECT");
    cargo
}

/// Runs the command with its output on the terminal; fails if the command fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("can't start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs the command and writes its output to `log`. The terminal shows a progress line with `what`,
/// the elapsed time and the latest line of output. If the command fails, the end of its output is
/// shown.
pub fn run_quietly(what: &str, log: &Path, command: &mut Command) -> Result<()> {
    let (reader, writer) = nix::unistd::pipe().context("can't make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.as_fd().try_clone_to_owned()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("can't start {}", shown(command)))?;
    // `command` keeps copies of the pipe's write end. Unless they are closed, the reader never sees
    // the end of the output.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (lines, newest) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        for line in BufReader::new(File::from(reader)).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            // The receiver is gone once the child has ended; the log still needs the line.
            lines.send(line.clone()).ok();
            all.push(line);
        }
        all
    });

    let progress = Progress::new(what);
    let status = loop {
        if let Ok(line) = newest.recv_timeout(Duration::from_millis(200)) {
            progress.line(&line);
        }
        progress.tick();
        if let Some(status) = child.try_wait()? {
            break status;
        }
    };
    progress.finish();
    let output = reading.join().unwrap_or_default();
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    std::fs::write(log, output.join("\n")).with_context(|| format!("can't write {}", log.display()))?;
    if !status.success() {
        for line in output.iter().rev().take(30).rev() {
            eprintln!("            {line}");
        }
        bail!("{what} failed ({status}); the command was `{}`, its output is in {}", shown(command), log.display());
    }
    say("done", format_args!("{what} ({:.0} s)", progress.started.elapsed().as_secs_f32()));
    Ok(())
}

/// The command line, for messages.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Makes xtask survive Ctrl-C. The terminal also sends the signal to the child process, which
/// cleans up and ends; xtask waits for that instead of ending first.
pub fn outlive_interrupts() {
    extern "C" fn ignore(_: nix::libc::c_int) {}
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the handler does nothing, so it is safe in any context. (SIG_IGN would be inherited
    // by children, a handler is not.)
    let set = unsafe { signal(Signal::SIGINT, SigHandler::Handler(ignore)) };
    if let Err(error) = set {
        say("warning", format_args!("Ctrl-C will end xtask before its child processes have cleaned up: {error}"));
    }
}

/// The interval between progress lines if stderr is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

struct Progress {
    what: String,
    started: Instant,
    /// `None` if stderr is not a terminal.
    bar: Option<ProgressBar>,
    /// Without a bar: when the last progress line was printed, and the command's latest line.
    plain: std::cell::RefCell<(Instant, String)>,
}

impl Progress {
    fn new(what: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner:>10}  {prefix} [{elapsed}] {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_prefix(what.to_owned());
            if let Ok(style) = style { bar.with_style(style) } else { bar }
        });
        if bar.is_none() {
            say("...", what);
        }
        let started = Instant::now();
        Self { what: what.to_owned(), started, bar, plain: std::cell::RefCell::new((started, String::new())) }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(line.to_owned()),
            None => self.plain.borrow_mut().1 = line.to_owned(),
        }
    }

    fn tick(&self) {
        if let Some(bar) = &self.bar {
            bar.tick();
            return;
        }
        let mut plain = self.plain.borrow_mut();
        if plain.0.elapsed() >= PLAIN_EVERY {
            plain.0 = Instant::now();
            say("...", format_args!("{} [{} s] {}", self.what, self.started.elapsed().as_secs(), plain.1));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
