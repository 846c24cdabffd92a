//! The root file system of guests with systemd: a small Debian 12 with the modules of every guest
//! kernel.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    exec::{run, run_quietly, shown},
    guest::{executable, linux::Unpacked, part, remove, write},
};

const SUITE: &str = "bookworm";
/// The packages beyond a minimal Debian.
const PACKAGES: &str = "systemd-sysv,kmod,iproute2,procps";

/// Units that tests do not need and that slow down the boot: there are no logins, devices do not
/// change, and the disk is discarded at the end.
const MASKED: &str = "
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-tmpfiles-clean.timer
    getty.target getty-static.service getty@tty1.service serial-getty@ttyS0.service
    systemd-ask-password-console.path systemd-ask-password-wall.path
    systemd-logind.service systemd-user-sessions.service systemd-update-utmp.service
    systemd-update-utmp-runlevel.service
    modprobe@.service kmod-static-nodes.service systemd-modules-load.service systemd-binfmt.service
    proc-sys-fs-binfmt_misc.automount
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount
    dev-hugepages.mount dev-mqueue.mount
    systemd-sysusers.service systemd-tmpfiles-setup-dev.service systemd-random-seed.service systemd-pstore.service
    systemd-remount-fs.service systemd-journal-flush.service systemd-machine-id-commit.service
    systemd-networkd-wait-online.service";

/// systemd generators that would make units for features that this Debian does not use.
const GENERATORS: &str = "
    systemd-bless-boot-generator systemd-cryptsetup-generator systemd-debug-generator systemd-fstab-generator
    systemd-getty-generator
    systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-integritysetup-generator
    systemd-rc-local-generator
    systemd-run-generator systemd-system-update-generator systemd-sysv-generator systemd-veritysetup-generator";

/// Directories that are removed, because guests do not need them.
const LEFT_OUT: [&str; 6] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists"];

const FILES: [(&str, &str); 2] = [
    ("usr/local/sbin/weir-guest", include_str!("files/weir-guest")),
    ("usr/local/sbin/guest-network", include_str!("files/guest-network")),
];

const UNITS: [(&str, &str); 2] = [
    ("weir-guest.service", include_str!("files/weir-guest.service")),
    ("guest-network.service", include_str!("files/guest-network.service")),
];

/// Makes `debian-12/root.ext4` in the cache.
pub fn bring(kernels: &[Unpacked]) -> Result<()> {
    let packages = format!("{SUITE} {PACKAGES}\n{LEFT_OUT:?}");
    let bare = part("debian-12-bare", &packages, bootstrap)?;
    let releases: Vec<&str> = kernels.iter().map(|kernel| kernel.release.as_str()).collect();
    let recipe = format!("{packages}\n{releases:?}\n{MASKED}\n{GENERATORS}\n{FILES:?}\n{UNITS:?}\n{FORMAT}");
    part("debian-12", &recipe, |new| build(&bare, kernels, new)).map(drop)
}

/// The version of [`build`]'s output. Increase it when that output changes, so that caches are
/// rebuilt.
const FORMAT: u32 = 1;

/// Installs a minimal Debian. This is the slow part of the build, and it does not depend on this
/// repository, so it is cached by itself.
fn bootstrap(new: &Path) -> Result<()> {
    let root = new.join("root");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&root).arg(mirror()?);
    run_quietly("debootstrap Debian 12 for guests", &new.join("debootstrap.log"), &mut debootstrap)?;
    LEFT_OUT.iter().try_for_each(|path| remove(&root.join(path)))
}

fn build(bare: &Path, kernels: &[Unpacked], new: &Path) -> Result<()> {
    let root = new.join("root");
    run(Command::new("cp").arg("-a").arg(bare.join("root")).arg(&root))?;
    for kernel in kernels {
        let (from, to) = (kernel.dir.join("lib/modules").join(&kernel.release), root.join("lib/modules"));
        fs::create_dir_all(&to).with_context(|| format!("can't make {}", to.display()))?;
        run(Command::new("cp").arg("-a").arg(&from).arg(&to))?;
    }
    configure(&root)?;
    let image = new.join("root.ext4");
    let mut mke2fs = Command::new("mke2fs");
    // No file system journal, because a guest's changes to the disk are discarded.
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]).arg(&root).arg(&image).arg("1500M");
    run_quietly("make the guests' disk", &new.join("mke2fs.log"), &mut mke2fs)?;
    remove(&root)
}

/// Configures the Debian in `root` as a guest.
fn configure(root: &Path) -> Result<()> {
    write(&root.join("etc/hostname"), "balancer\n")?;
    write(&root.join("etc/hosts"), "127.0.0.1 localhost balancer\n::1 localhost\n")?;
    write(&root.join("etc/fstab"), "")?;
    // Without a machine id, systemd would treat each boot as the first boot of a new machine.
    write(&root.join("etc/machine-id"), "5ca1ab1e0ddba11c0ffee0decade1337\n")?;
    write(&root.join("etc/systemd/journald.conf.d/guest.conf"), "[Journal]\nStorage=volatile\nRateLimitBurst=0\n")?;
    for (path, text) in FILES {
        executable(&root.join(path), text)?;
    }
    let units = root.join("etc/systemd/system");
    for (name, text) in UNITS {
        write(&units.join(name), text)?;
    }
    let generators = root.join("etc/systemd/system-generators");
    fs::create_dir_all(&generators).with_context(|| format!("can't make {}", generators.display()))?;
    let masks = MASKED.split_whitespace().map(|name| units.join(name));
    for mask in masks.chain(GENERATORS.split_whitespace().map(|name| generators.join(name))) {
        std::os::unix::fs::symlink("/dev/null", &mask).with_context(|| format!("can't make {}", mask.display()))?;
    }
    let names = UNITS.map(|(name, _)| name);
    run(Command::new("chroot").arg(root).args(["systemctl", "--quiet", "enable"]).args(names))
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]);
    let output = apt.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", shown(&apt)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let of_debian = text.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        // Not `bookworm-security`, whose mirror has only security updates.
        ["Debian", codename, uri] if !codename.contains('-') => Some(uri.trim_end_matches('/').to_owned()),
        _ => None,
    });
    Ok(of_debian.unwrap_or_else(|| "http://deb.debian.org/debian".to_owned()))
}
