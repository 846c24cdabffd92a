//! Checks the agent's capabilities: those of the process that is or will be the agent, not those of
//! the shell in which `doctor` runs.

use std::{fmt, fs, path::PathBuf};

use super::{
    finding::{error, ok, warning},
    unit::{self, Unit},
};
use crate::view::types::Finding;

/// The process whose capabilities are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The running agent, with this process id.
    Agent {
        pid: u32,
    },
    /// The agent that this unit file, with its drop-ins, will start.
    Unit {
        path: PathBuf,
        effective: u64,
    },
    Process,
}

impl Subject {
    /// The running agent if there is one, else the installed unit, else this process.
    pub fn find(agent: Option<u32>) -> Self {
        let of_unit = || {
            let Unit { path, effective } = unit::installed()?;
            Some(Self::Unit { path, effective })
        };
        agent.map(|pid| Self::Agent { pid }).or_else(of_unit).unwrap_or(Self::Process)
    }

    /// Effective capabilities as a set of bits; `None` if they can't be read.
    fn effective(&self) -> Option<u64> {
        let status = match self {
            Self::Agent { pid } => format!("/proc/{pid}/status"),
            Self::Unit { effective, .. } => return Some(*effective),
            Self::Process => "/proc/thread-self/status".to_owned(),
        };
        effective(&fs::read_to_string(status).ok()?)
    }

    fn remedy(&self, missing: &str) -> String {
        match self {
            Self::Agent { .. } => format!(
                "add {missing} to `CapabilityBoundingSet=` of its unit (`systemctl edit weir`) or to its container, \
                and \
                 restart it"
            ),
            Self::Unit { .. } => format!("`systemctl edit weir`: add {missing} to `CapabilityBoundingSet=`"),
            Self::Process => "run it as root, or give the service or container these capabilities".to_owned(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { pid } => write!(f, "the running agent (pid {pid})"),
            Self::Unit { path, .. } => write!(f, "the unit {}", path.display()),
            Self::Process => f.write_str("this process"),
        }
    }
}

pub(super) fn finding(subject: &Subject) -> Finding {
    let Some(effective) = subject.effective() else {
        return warning("capabilities", format!("those of {subject} cannot be read"), "mount /proc, and ask as root");
    };
    let missing = missing(effective);
    if missing.is_empty() {
        return ok("capabilities", format!("{subject} has all that are needed"));
    }
    let missing = missing.join(" ");
    error("capabilities", format!("{subject} lacks {missing}"), subject.remedy(&missing))
}

/// The capabilities that Weir needs, with their bits from linux/capability.h.
const NEEDED: [(&str, u32); 4] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// CAP_SYS_ADMIN includes CAP_PERFMON and CAP_BPF.
const SYS_ADMIN: u32 = 21;

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & 1 << bit != 0;
    let by_admin = |bit: u32| bit >= 38 && has(SYS_ADMIN);
    NEEDED.iter().filter(|(_, bit)| !has(*bit) && !by_admin(*bit)).map(|(name, _)| *name).collect()
}

/// The effective capabilities, from the text of /proc/PID/status.
fn effective(status: &str) -> Option<u64> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::types::Severity;

    #[test]
    fn capabilities_that_are_missing_are_named() {
        assert_eq!(missing(0x0000_01ff_ffff_ffff), Vec::<&str>::new());
        assert_eq!(missing(1 << 12 | 1 << 13), ["CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(missing(1 << 12 | 1 << 21), ["CAP_NET_RAW"]);
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]);
    }

    #[test]
    fn effective_capabilities_are_read_from_the_status_of_a_process() {
        let status = "Name:\tweir\nCapPrm:\t0000000000000000\nCapEff:\t000000c000003000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(0xc0_0000_3000));
        assert_eq!(missing(0xc0_0000_3000), Vec::<&str>::new());
        assert_eq!(effective("Name:\tweir\n"), None);
    }

    #[test]
    fn finding_says_whose_capabilities_it_speaks_of() {
        let unit = Subject::Unit { path: "/etc/systemd/system/weir.service".into(), effective: 1 << 12 | 1 << 13 };
        let found = finding(&unit);
        assert_eq!(found.severity, Severity::Error);
        assert_eq!(found.message, "the unit /etc/systemd/system/weir.service lacks CAP_PERFMON CAP_BPF");
        assert!(found.remedy.contains("systemctl edit weir"), "{}", found.remedy);
        let pid = std::process::id();
        let running = finding(&Subject::Agent { pid });
        assert!(running.message.starts_with(&format!("the running agent (pid {pid}) ")), "{}", running.message);
        assert!(finding(&Subject::Process).message.starts_with("this process "));
        // No process has this id.
        assert_eq!(finding(&Subject::Agent { pid: u32::MAX }).severity, Severity::Warning);
    }

    #[test]
    fn running_agent_is_judged_before_any_unit() {
        assert_eq!(Subject::find(Some(7)), Subject::Agent { pid: 7 });
    }
}
