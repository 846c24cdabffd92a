//! Prepares the virtual machines (guests) of tests: QEMU, which works without KVM, Debian kernels,
//! which are unpacked but never installed, and a root file system with systemd. Kernels and root
//! file system are kept outside target/, so that `cargo clean` does not cause another download.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{exec::say, packages, setup};

mod debian;
mod initrd;
mod linux;

/// Prepares guests without systemd, whose user space is an archive of this machine's programs:
/// QEMU, and a kernel with the drivers of tunnels that end at a backend.
pub fn setup() -> Result<()> {
    setup::need(
        &[
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("busybox", "busybox-static"),
            ("depmod", "kmod"),
            ("mke2fs", "e2fsprogs"),
        ],
        "programs that build or run guests",
    )?;
    let _lock = lock()?;
    linux::bring(&linux::NEWEST).map(drop)
}

/// Prepares guests with systemd: every supported kernel other than this machine's, and a root file
/// system.
pub fn images() -> Result<()> {
    setup()?;
    setup::need(&[("debootstrap", "debootstrap")], "the program that builds the guests' root file system")?;
    let _lock = lock()?;
    let kernels = [linux::bring(&linux::OLDEST)?, linux::bring(&linux::NEWEST)?];
    debian::bring(&kernels)
}

/// `$WEIR_CACHE/guest`, else `weir/guest` in the user's cache directory.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let weir = set("WEIR_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("weir")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/weir")));
    Ok(weir.context("no directory for the files of guests: set WEIR_CACHE or HOME")?.join("guest"))
}

/// Locks the cache: one process at a time works on it.
fn lock() -> Result<File> {
    let dir = cache()?;
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    file.lock().with_context(|| format!("can't lock {}", path.display()))?;
    Ok(file)
}

/// Returns the directory `name` of the cache. If there is none, or it was built by another recipe,
/// `build` makes it. It is built under another name and renamed at the end, so that an interrupted
/// run leaves nothing that looks finished.
fn part(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = cache()?.join(name);
    if fs::read_to_string(dir.join("recipe")).is_ok_and(|built| built == recipe) {
        return Ok(dir);
    }
    if !packages::is_debian() {
        bail!(
            "{name} for guests is missing: it is built from Debian's packages; run the suites `e2e` and `guest` on \
            Debian"
        );
    }
    let new = cache()?.join(format!("{name}.new"));
    remove(&new)?;
    fs::create_dir_all(&new).with_context(|| format!("can't make {}", new.display()))?;
    build(&new)?;
    write(&new.join("recipe"), recipe)?;
    remove(&dir)?;
    fs::rename(&new, &dir).with_context(|| format!("can't make {}", dir.display()))?;
    say("guest", format_args!("{}", dir.display()));
    Ok(dir)
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else if path.exists() {
        fs::remove_file(path)
    } else {
        Ok(())
    };
    removed.with_context(|| format!("can't remove {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

fn executable(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).with_context(|| format!("can't chmod {}", path.display()))
}
