//! Checks the kernel: its version, its options, its bpffs, and the pins there.

use std::path::Path;

use aya::util::KernelVersion;
use lb_common::limits::map;

use super::finding::{error, ok, sysctl, warning};
use crate::{
    dataplane::{bpffs, migrate::record::LAYOUTS},
    view::types::Finding,
};

pub(super) fn findings(pin_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![bpffs(pin_dir), version(), btf(), jit()];
    findings.extend(pins(pin_dir));
    findings
}

/// Finds map pins that were deleted while others still exist: the running data path keeps its maps,
/// but the next start would begin with empty ones. Finds a deleted record of the maps' layouts,
/// too.
fn pins(pin_dir: &Path) -> Option<Finding> {
    let (there, gone): (Vec<&str>, Vec<&str>) = map::PINNED.iter().partition(|name| pin_dir.join(name).exists());
    if there.is_empty() {
        return None;
    }
    if gone.is_empty() && !pin_dir.join(LAYOUTS).exists() {
        return Some(warning(
            "pins",
            format!("{LAYOUTS} is gone from {}: the next start of the agent needs CAP_SYS_ADMIN", pin_dir.display()),
            "a running agent writes it again within seconds; if none runs, see docs/operations.md, \"An agent without \
            a record of the layouts\"",
        ));
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
    if bpffs::is_on_bpffs(pin_dir) {
        return ok("bpffs", format!("{} is on a BPF file system", pin_dir.display()));
    }
    error(
        "bpffs",
        format!("{} is not on a BPF file system: the data path cannot be pinned", pin_dir.display()),
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

fn version() -> Finding {
    let Ok(version) = KernelVersion::current() else {
        return warning("kernel", "the kernel's version cannot be read", "");
    };
    judged(version, &sysctl("kernel/osrelease").unwrap_or_default())
}

/// The finding for a kernel of this version: what it lacks.
fn judged(version: KernelVersion, release: &str) -> Finding {
    if version < KernelVersion::new(5, 18, 0) {
        let message = format!("Linux {release} is too old: multi-buffer XDP needs 5.18");
        return error("kernel", message, "boot Linux 6.6 or later");
    }
    let mut lacks = Vec::new();
    if version < KernelVersion::new(6, 1, 0) {
        lacks.push("no kernel older than 6.1 is tested");
    }
    if version < KernelVersion::new(6, 6, 0) {
        lacks.push("TC hooks are clsact filters, which others can remove (tcx links need 6.6)");
    }
    if version < KernelVersion::new(6, 3, 0) {
        lacks.push(
            "the kernel does not tell what an interface can do with XDP (needs 6.3): packets leave by TC where its \
             driver is not known to take them from XDP",
        );
    }
    if lacks.is_empty() {
        return ok("kernel", format!("Linux {release}"));
    }
    warning("kernel", format!("Linux {release}: {}", lacks.join("; ")), "boot Linux 6.6 or later")
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
    // The file exists only in the initial network namespace.
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
    use crate::view::types::Severity;

    #[test]
    fn deleted_pin_beside_others_is_an_error_and_none_at_all_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(pins(directory.path()).is_none());
        for name in map::PINNED {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(pins(directory.path()).unwrap().severity, Severity::Warning);
        std::fs::write(directory.path().join(LAYOUTS), "").unwrap();
        assert_eq!(pins(directory.path()).unwrap().severity, Severity::Ok);
        std::fs::remove_file(directory.path().join(map::BACKENDS)).unwrap();
        let found = pins(directory.path()).unwrap();
        assert_eq!(found.severity, Severity::Error);
        assert!(found.message.contains(map::BACKENDS), "{}", found.message);
    }

    #[test]
    fn kernel_finding_names_what_each_version_lacks() {
        let finding = |major, minor| judged(KernelVersion::new(major, minor, 0), "x");
        assert_eq!(finding(5, 17).severity, Severity::Error);
        for (version, severity, said) in [
            ((5, 18), Severity::Warning, [true, true, true]),
            ((6, 0), Severity::Warning, [true, true, true]),
            ((6, 1), Severity::Warning, [false, true, true]),
            ((6, 2), Severity::Warning, [false, true, true]),
            ((6, 3), Severity::Warning, [false, true, false]),
            ((6, 5), Severity::Warning, [false, true, false]),
            ((6, 6), Severity::Ok, [false, false, false]),
            ((6, 18), Severity::Ok, [false, false, false]),
        ] {
            let found = finding(version.0, version.1);
            assert_eq!(found.severity, severity, "{version:?}");
            let says = ["older than 6.1 is tested", "clsact", "does not tell"].map(|part| found.message.contains(part));
            assert_eq!(says, said, "{version:?}: {}", found.message);
        }
    }
}
