//! The pin directory, on a BPF file system: making, locking and listing it, and replacing pins.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use aya::{pin::PinError, sys::SyscallError};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where the agent pins by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/weir";

#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error("{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, or choose another \
        --pin-dir", .0.display())]
    NoBpffs(PathBuf),
    #[error("cannot use the pin directory {}: {source}", .path.display())]
    PinDir { path: PathBuf, source: io::Error },
    #[error("another weir agent runs with the pin directory {}: stop it, or choose another --pin-dir", .0.display())]
    InUse(PathBuf),
}

/// Makes the pin directory, which must be on a bpffs; returns whether it is new.
pub(super) fn prepare(pin_dir: &Path) -> Result<bool, BpffsError> {
    if !is_on_bpffs(pin_dir) {
        return Err(BpffsError::NoBpffs(pin_dir.to_owned()));
    }
    let is_new = !pin_dir.exists();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(pin_dir);
    made.map_err(|source| BpffsError::PinDir { path: pin_dir.to_owned(), source })?;
    Ok(is_new)
}

/// Whether `path`, or its nearest existing ancestor, is on a BPF file system.
pub fn is_on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|file_system| file_system.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn lock(pin_dir: &Path) -> Result<Flock<File>, BpffsError> {
    let failed = |source| BpffsError::PinDir { path: pin_dir.to_owned(), source };
    let directory = File::open(pin_dir).map_err(failed)?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(BpffsError::InUse(pin_dir.to_owned())),
        Err((_, error)) => Err(failed(error.into())),
    }
}

/// Removes the pin directory that a failed first start has made.
pub(super) fn remove_empty(pin_dir: &Path) {
    match std::fs::remove_dir(pin_dir) {
        Ok(()) => {}
        Err(error) => tracing::debug!(pin_dir = %pin_dir.display(), %error, "the pin directory stays"),
    }
}

/// The names of all pins, sorted.
pub(super) fn names(pin_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(pin_dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The suffix of new pins; not ".new", because a bpffs reserves names with dots.
pub(super) const NEW: &str = "-new";

/// The temporary pin for an object that will be pinned at `path`.
pub(super) fn new_path(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    new.into()
}

/// Pins at `path`, replacing the old pin atomically: an interruption leaves either the old or the
/// new one.
pub(super) fn pin_over(path: &Path, pin: impl FnOnce(&Path) -> Result<(), PinError>) -> Result<(), PinError> {
    let new = new_path(path);
    let failed = |call| move |io_error| PinError::SyscallError(SyscallError { call, io_error });
    match fs::remove_file(&new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(failed("unlink"))?,
    }
    pin(&new)?;
    fs::rename(&new, path).map_err(failed("rename"))
}
