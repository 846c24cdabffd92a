//! The kernel and what the process may do.

use std::path::Path;

use aya::util::KernelVersion;
use lb_common::limits::map;

use super::{error, ok, sysctl, warning};
use crate::{api::types::Finding, dataplane::load};

/// Capabilities by their bits in /proc/self/status.
const CAPABILITIES: [(&str, u32); 4] = [("NET_ADMIN", 12), ("NET_RAW", 13), ("PERFMON", 38), ("BPF", 39)];
/// It stands for PERFMON and BPF.
const SYS_ADMIN: u32 = 21;

pub(super) fn findings(pin_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![bpffs(pin_dir), capabilities(), version(), btf(), jit()];
    findings.extend(pins(pin_dir));
    findings
}

/// Pins of maps that somebody deleted beside others that are there: the running data path keeps its maps, the next one would begin with empty ones.
fn pins(pin_dir: &Path) -> Option<Finding> {
    let (there, gone): (Vec<&str>, Vec<&str>) = map::PINNED.iter().partition(|name| pin_dir.join(name).exists());
    if there.is_empty() {
        return None;
    }
    if gone.is_empty() {
        return Some(ok("pins", format!("every map is pinned in {}", pin_dir.display())));
    }
    Some(error(
        "pins",
        format!("{} gone from {}: the agent's next start begins with empty ones", gone.join(", "), pin_dir.display()),
        "leave the agent running until connections may be lost; then stop it, `weir cleanup`, and start it",
    ))
}

fn bpffs(pin_dir: &Path) -> Finding {
    if load::is_on_bpffs(pin_dir) {
        return ok("bpffs", format!("{} is on a BPF file system", pin_dir.display()));
    }
    error(
        "bpffs",
        format!("{} is not on a BPF file system: the data path cannot be pinned", pin_dir.display()),
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

fn capabilities() -> Finding {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    match missing_capabilities(&status) {
        None => warning("capabilities", "the capabilities of this process cannot be read", "mount /proc"),
        Some(missing) if missing.is_empty() => ok("capabilities", "all that are needed"),
        Some(missing) => error(
            "capabilities",
            format!("CAP_{} missing", missing.join(", CAP_")),
            "run it as root, or give the service or container these capabilities",
        ),
    }
}

fn missing_capabilities(status: &str) -> Option<Vec<&'static str>> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let has = |bit: u32| effective & 1 << bit != 0;
    let by_admin = |bit: u32| bit >= 38 && has(SYS_ADMIN);
    Some(CAPABILITIES.iter().filter(|(_, bit)| !has(*bit) && !by_admin(*bit)).map(|(name, _)| *name).collect())
}

fn version() -> Finding {
    let Ok(version) = KernelVersion::current() else {
        return warning("kernel", "the kernel's version cannot be read", "");
    };
    let release = sysctl("kernel/osrelease").unwrap_or_default();
    if version < KernelVersion::new(5, 18, 0) {
        error("kernel", format!("Linux {release} is too old: multi-buffer XDP needs 5.18"), "boot Linux 6.1 or later")
    } else if version < KernelVersion::new(6, 6, 0) {
        let message = format!("Linux {release}: TC by clsact filters, which others can remove; tcx links need 6.6");
        warning("kernel", message, "boot Linux 6.6 or later")
    } else {
        ok("kernel", format!("Linux {release}"))
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return ok("btf", "the kernel has BTF");
    }
    warning(
        "btf",
        "the kernel has no BTF: `bpftool` cannot show the maps' types",
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

fn jit() -> Finding {
    // The file is there in the first network namespace only.
    match sysctl("net/core/bpf_jit_enable").as_deref() {
        Some("0") => warning(
            "jit",
            "the BPF JIT is off: each packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => ok("jit", "the BPF JIT is on"),
        None => ok("jit", "not to be seen from this network namespace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Severity;

    #[test]
    fn deleted_pin_beside_others_is_an_error_and_none_at_all_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(pins(directory.path()).is_none());
        for name in map::PINNED {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(pins(directory.path()).unwrap().severity, Severity::Ok);
        std::fs::remove_file(directory.path().join(map::BACKENDS)).unwrap();
        let found = pins(directory.path()).unwrap();
        assert_eq!(found.severity, Severity::Error);
        assert!(found.message.contains(map::BACKENDS), "{}", found.message);
    }

    #[test]
    fn capabilities_that_are_missing_are_named() {
        let missing = |bits: u64| missing_capabilities(&format!("Name:\tweir\nCapEff:\t{bits:016x}\n"));
        assert_eq!(missing(0x0000_01ff_ffff_ffff), Some(vec![]));
        assert_eq!(missing(1 << 12 | 1 << 13), Some(vec!["PERFMON", "BPF"]));
        assert_eq!(missing(1 << 12 | 1 << 21), Some(vec!["NET_RAW"]));
        assert_eq!(missing(0), Some(vec!["NET_ADMIN", "NET_RAW", "PERFMON", "BPF"]));
        assert_eq!(missing_capabilities("Name:\tweir\n"), None);
    }
}
