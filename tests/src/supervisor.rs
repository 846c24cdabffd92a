//! A supervisor as systemd is one to its services: a datagram socket that is named in
//! `NOTIFY_SOCKET`.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub struct Supervisor {
    pub path: PathBuf,
    socket: UnixDatagram,
}

impl Supervisor {
    pub fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("notify.sock");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("can't bind {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).context("can't set a timeout")?;
        Ok(Self { path, socket })
    }

    /// The next messages (`READY=1`, `STATUS=...`, a line each) up to the first that `is` what is
    /// waited for; without signs of life.
    pub fn told_until(&self, what: &str, patience: Duration, is: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.trim() == "WATCHDOG=1" {
                continue;
            }
            let ends = is(&message);
            told.push(message);
            if ends {
                return Ok(told);
            }
        }
        bail!("the supervisor was not told {what} within {patience:?}, but {told:#?}")
    }

    /// Whatever has been told up to now, and within `time` from now.
    pub fn told_within(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(length) = self.socket.recv(&mut buffer) {
                told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        told
    }
}
