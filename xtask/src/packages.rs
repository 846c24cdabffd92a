//! Installs or downloads Debian packages, without starting their services.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{self, run_quietly},
    toolchain::tools,
};

/// Installs `packages` if running as root on Debian; otherwise fails with an error that shows the
/// command and says that `what` is missing.
pub fn install(packages: &[&str], what: &str) -> Result<()> {
    let command = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !is_debian() {
        bail!("missing: {what}; install the counterparts of Debian's {} (there: `{command}`)", packages.join(", "));
    }
    if !exec::is_root() {
        bail!("missing: {what}; run `apt-get update && {command}` or `cargo xtask setup` as root");
    }
    let _quiet = NoServices::new()?;
    update_once();
    let mut install = apt("install");
    install.args(["--yes", "--no-install-recommends"]).args(packages);
    run_quietly(&format!("install {}", packages.join(" ")), &tools().join("apt-install.log"), &mut install)?;
    // Where systemd runs, installing nginx also enables it for the next boot, but this machine
    // should not get a web server.
    if packages.contains(&"nginx-light") && Path::new("/run/systemd/system").exists() {
        exec::run(Command::new("systemctl").args(["disable", "--quiet", "nginx"]))?;
    }
    Ok(())
}

/// The package that `metas`' first metapackage known to apt depends on. Installs neither.
pub fn dependency_of(metas: &[&str]) -> Result<String> {
    if exec::is_root() {
        update_once();
    }
    for meta in metas {
        let output = Command::new("apt-cache").args(["depends", "--important", meta]).output();
        let output = output.context("can't start apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(package) = text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")) {
            return Ok(package.to_owned());
        }
    }
    bail!("apt knows none of {}: enable Debian's security archive and run `apt-get update`", metas.join(", "))
}

/// Downloads the .deb file of a package into `dir`; returns the file's path.
pub fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    // By default, root's apt downloads as the user `_apt`, who can't write into `dir`.
    let mut download = apt("download");
    download.args(["-o", "APT::Sandbox::User=root", package]).current_dir(dir);
    run_quietly(&format!("download {package}"), &tools().join("apt-download.log"), &mut download)?;
    let entries = std::fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
    let archive = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    archive.with_context(|| format!("apt-get downloaded {package}, but there is no .deb in {}", dir.display()))
}

/// Updates apt's package lists, once per run of xtask. Even recent lists are updated, because those
/// of an installation medium name old versions. A failure is only a warning, because the existing
/// lists may be enough.
fn update_once() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        if let Err(error) = run_quietly("apt-get update", &tools().join("apt-update.log"), &mut apt("update")) {
            exec::say("warning", format_args!("{error:#}"));
        }
    });
}

/// Whether this machine uses apt.
pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists()
}

fn apt(subcommand: &str) -> Command {
    let mut apt = Command::new("apt-get");
    // Wait for another apt, which may be running if the machine has just started.
    apt.arg(subcommand).args(["-q", "-o", "DPkg::Lock::Timeout=120"]).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// A guard: while it lives, package scripts start no services, because `policy-rc.d` (Debian's
/// mechanism for this) forbids it. `None` if the machine has its own `policy-rc.d`.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&policy, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("can't write {}", policy.display()))?;
        let guard = Self(Some(policy.clone()));
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&policy, executable).with_context(|| format!("can't chmod {}", policy.display()))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = std::fs::remove_file(policy)
        {
            exec::say(
                "warning",
                format_args!("can't remove {}, which keeps services from starting: {error}", policy.display()),
            );
        }
    }
}
