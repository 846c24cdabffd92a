//! Child processes: run to the end, or kept with a log until they are stopped.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Runs it to the end and returns its output; fails with what it said if it fails.
pub fn check(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it to the end, however that is.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("can't start `{}`", shown(command)))
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A child that runs until it is stopped; killed when dropped.
pub struct Running {
    pub name: String,
    pub log: PathBuf,
    child: Child,
}

impl Running {
    /// Starts it, its output appended to `log`.
    pub fn start(name: &str, log: &Path, command: &mut Command) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("can't write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("can't share the log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("can't start `{}`", shown(command)))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.child.try_wait().with_context(|| format!("can't wait for {}", self.name))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("can't send {signal} to {} ({pid})", self.name))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("can't kill {}", self.name))?;
        self.child.wait().with_context(|| format!("can't wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end (SIGTERM), and kills it if it doesn't within `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.ended()?.is_none() {
            if asked.elapsed() > patience {
                self.kill()?;
                bail!("{} did not end within {patience:?} of SIGTERM and was killed", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The last lines of its log, for a message.
    pub fn log_tail(&self) -> String {
        match std::fs::read_to_string(&self.log) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().collect();
                lines
                    .iter()
                    .skip(lines.len().saturating_sub(40))
                    .fold(String::new(), |all, line| all + "  " + line + "\n")
            }
            Err(error) => format!("  (its log {} can't be read: {error})\n", self.log.display()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.ended()
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}

/// Waits until `condition` holds, asked every few milliseconds; fails and says `what` after
/// `patience`.
pub fn wait_for(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let last = condition();
        if let Ok(true) = last {
            return Ok(started.elapsed());
        }
        if started.elapsed() > patience {
            match last {
                Err(error) => return Err(error.context(format!("{what}: not within {patience:?}"))),
                Ok(_) => bail!("{what}: not within {patience:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
