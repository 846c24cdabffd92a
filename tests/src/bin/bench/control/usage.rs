//! What a process has used, as /proc says it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// What all threads of a process have used since it began.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    at: Instant,
    user: Duration,
    system: Duration,
    wake_ups: u64,
}

/// What a process used from one look to the next.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub time: Duration,
    pub user: Duration,
    pub system: Duration,
    wake_ups: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Self> {
        let stat = read(pid, "stat")?;
        // The name, in brackets, may hold spaces: the third field comes behind it.
        let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
        let ticks = |number: usize| -> Result<Duration> {
            let text = fields.split_whitespace().nth(number - 3).context("a stat that is too short")?;
            Ok(Duration::from_secs_f64(text.parse::<f64>()? / ticks_a_second()?))
        };
        let (user, system) = (ticks(14)?, ticks(15)?);
        let mut wake_ups = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).context("can't list threads")? {
            // A thread that has ended meanwhile.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            wake_ups += number(&status, "voluntary_ctxt_switches:")?;
        }
        Ok(Self { at: Instant::now(), user, system, wake_ups })
    }

    /// What is used from this look on, for so long.
    pub fn during(pid: u32, time: Duration) -> Result<Used> {
        let before = Self::of(pid)?;
        std::thread::sleep(time);
        before.until(&Self::of(pid)?)
    }

    /// User and system time.
    pub fn processor(&self) -> Duration {
        self.user + self.system
    }

    fn until(&self, later: &Self) -> Result<Used> {
        let more = |before: Duration, after: Duration| after.checked_sub(before).context("a clock that runs backwards");
        Ok(Used {
            time: later.at - self.at,
            user: more(self.user, later.user)?,
            system: more(self.system, later.system)?,
            // A thread that has ended takes its count along.
            wake_ups: later.wake_ups.saturating_sub(self.wake_ups),
        })
    }
}

impl Used {
    /// Of one core.
    pub fn percent(&self, part: Duration) -> f64 {
        100.0 * part.as_secs_f64() / self.time.as_secs_f64()
    }

    pub fn all_percent(&self) -> f64 {
        self.percent(self.user + self.system)
    }

    pub fn wake_ups_a_second(&self) -> f64 {
        self.wake_ups as f64 / self.time.as_secs_f64()
    }
}

/// MiB of anonymous memory.
pub fn anonymous(pid: u32) -> Result<f64> {
    Ok(number(&read(pid, "status")?, "RssAnon:")? as f64 / 1024.0)
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
}

fn number(status: &str, label: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(label));
    let value =
        line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {label} in a status"))?;
    value.parse().with_context(|| format!("{label} {value}"))
}

fn ticks_a_second() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("the system has no clock tick")? as f64)
}
