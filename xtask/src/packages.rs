//! Installing Debian packages, without starting the services that come with them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{self, run_quietly},
    toolchain::tools,
};

/// Installs `packages` if this is root on Debian; otherwise fails and says the command.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let command = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !is_debian() {
        bail!("{why} is missing: install what Debian calls {} (there: `{command}`)", packages.join(", "));
    }
    if !exec::is_root() {
        bail!("{why} is missing; run as root: `apt-get update && {command}`, or `cargo xtask setup` as root");
    }
    let _quiet = NoServices::new()?;
    if !lists_are_fresh() {
        update()?;
    }
    let what = format!("install {}", packages.join(" "));
    let log = tools().join("apt-install.log");
    let install = || {
        let mut apt = apt("install");
        apt.args(["--yes", "--no-install-recommends"]).args(packages);
        run_quietly(&what, &log, &mut apt)
    };
    if let Err(error) = install() {
        exec::say("retry", format_args!("after `apt-get update`: {error:#}"));
        update()?;
        install()?;
    }
    // Where systemd runs, installing nginx also enables it for the next boot; nobody asked for a web server on this machine.
    if packages.contains(&"nginx-light") && Path::new("/run/systemd/system").exists() {
        exec::run(Command::new("systemctl").args(["disable", "--quiet", "nginx"]))?;
    }
    Ok(())
}

/// Whether apt is how this machine installs.
pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists()
}

fn update() -> Result<()> {
    run_quietly("apt-get update", &tools().join("apt-update.log"), &mut apt("update"))
}

fn apt(subcommand: &str) -> Command {
    let mut apt = Command::new("apt-get");
    // Another apt may be at work on a machine that has just been started.
    apt.arg(subcommand).args(["-q", "-o", "DPkg::Lock::Timeout=120"]).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn lists_are_fresh() -> bool {
    let newest = std::fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())
        .max();
    let age = newest.and_then(|newest| SystemTime::now().duration_since(newest).ok());
    age.is_some_and(|age| age < Duration::from_secs(24 * 3600))
}

/// While it lives, packages' scripts start no service: `policy-rc.d` is how Debian says that.
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
            exec::say("warning", format_args!("{} stays and keeps services from starting: {error}", policy.display()));
        }
    }
}
