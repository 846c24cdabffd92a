//! A network namespace by name, and ways to do something inside.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::process::check;

/// A named network namespace; whoever made it removes it (see [`crate::leftovers`]).
#[derive(Clone, Debug)]
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn add(name: String) -> Result<Self> {
        check(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Self { name })
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A program in this namespace. `nsenter` and not `ip netns exec`: that would hide /sys behind
    /// a mount of its own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// `ip` in this namespace, one command a line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            check(self.command("ip").args(line.split_whitespace()))?;
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own in this namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<Result<T>>> {
        let path = self.path();
        let thread = std::thread::Builder::new().name(self.name.clone());
        thread
            .spawn(move || {
                enter(&path)?;
                Ok(work())
            })
            .with_context(|| format!("can't start a thread for {}", self.name))
    }

    /// Runs `work` in this namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        match self.spawn(work)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Writes sysctls (`net/ipv4/ip_forward`) of this namespace; /proc shows those of the thread
    /// that looks.
    pub fn sysctl(&self, settings: &'static [(&'static str, &'static str)]) -> Result<()> {
        self.run(move || {
            for (name, value) in settings {
                let path = Path::new("/proc/sys").join(name);
                std::fs::write(&path, value).with_context(|| format!("can't write {value} to {}", path.display()))?;
            }
            Ok(())
        })?
    }
}

fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("can't open the namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter {} (needs root)", path.display()))
}
