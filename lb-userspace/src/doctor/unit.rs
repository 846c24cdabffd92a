//! Computes the capabilities that an installed weir.service gives the agent, by the rules of
//! systemd.unit(5) and systemd.exec(5).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The installed unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unit {
    pub path: PathBuf,
    /// The effective capabilities of the unit's process, as a bit set.
    pub effective: u64,
}

/// Where systemd looks for units; the first match wins.
const SEARCH_PATH: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const NAME: &str = "weir.service";

/// The installed unit; `None` if there is none or it is masked.
pub fn installed() -> Option<Unit> {
    found(&SEARCH_PATH.map(PathBuf::from))
}

fn found(directories: &[PathBuf]) -> Option<Unit> {
    let path = directories.iter().map(|directory| directory.join(NAME)).find(|path| path.exists())?;
    let text = fs::read_to_string(&path).ok()?;
    // A masked unit is a link to /dev/null, or an empty file.
    if text.is_empty() {
        return None;
    }
    let mut settings = Settings::default();
    settings.read(&text);
    for text in drop_ins(directories) {
        settings.read(&text);
    }
    Some(Unit { path, effective: settings.effective() })
}

/// The texts of the drop-ins, ordered by name. A drop-in hides drop-ins of the same name in later
/// directories.
fn drop_ins(directories: &[PathBuf]) -> Vec<String> {
    let mut paths = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory.join(format!("{NAME}.d"))) else { continue };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_drop_in(path)) {
            paths.entry(path.file_name().map(ToOwned::to_owned)).or_insert(path);
        }
    }
    paths.values().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn is_drop_in(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conf")
}

/// The settings that determine the capabilities.
#[derive(Debug)]
struct Settings {
    bounding: u64,
    ambient: u64,
    user: String,
}

const ALL: u64 = (1 << CAPABILITIES.len()) - 1;

impl Default for Settings {
    fn default() -> Self {
        Self { bounding: ALL, ambient: 0, user: String::new() }
    }
}

impl Settings {
    /// Reads a unit file or a drop-in on top of what was read before.
    fn read(&mut self, text: &str) {
        let mut section = String::new();
        for line in lines(text) {
            if line.starts_with('[') {
                section = line;
            } else if section == "[Service]"
                && let Some((key, value)) = line.split_once('=')
            {
                let value = value.trim();
                match key.trim_end() {
                    "CapabilityBoundingSet" => assign(&mut self.bounding, value, ALL),
                    "AmbientCapabilities" => assign(&mut self.ambient, value, 0),
                    "User" => value.clone_into(&mut self.user),
                    _ => {}
                }
            }
        }
    }

    /// Root gets the whole bounding set; another user only the ambient capabilities.
    fn effective(&self) -> u64 {
        match self.user.as_str() {
            "" | "root" | "0" => self.bounding,
            _ => self.bounding & self.ambient,
        }
    }
}

/// Applies one line of a setting that is a set: lines add up, `~` removes, an empty value resets to
/// none and `~` alone to all. The first line replaces `initial`.
fn assign(set: &mut u64, value: &str, initial: u64) {
    let (is_inverted, names) = match value.strip_prefix('~') {
        Some(names) => (true, names),
        None => (false, value),
    };
    let named = names.split_whitespace().filter_map(bit).fold(0, |set, bit| set | bit);
    *set = match (named == 0 || *set == initial, is_inverted) {
        (true, true) => ALL & !named,
        (true, false) => named,
        (false, true) => *set & !named,
        (false, false) => *set | named,
    };
}

/// The bit of a capability; systemd ignores names that it doesn't know.
fn bit(name: &str) -> Option<u64> {
    let name = name.trim_matches(['"', '\'']).to_ascii_uppercase();
    let name = name.strip_prefix("CAP_")?;
    CAPABILITIES.iter().position(|known| *known == name).map(|at| 1 << at)
}

/// The lines without comments, with continued lines joined. A comment between continued lines does
/// not end the line.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut begun = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => begun = begun + part + " ",
            None => lines.push(std::mem::take(&mut begun) + line),
        }
    }
    lines.push(begun);
    lines
}

/// Capability names, at the positions of their bits in linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests;
