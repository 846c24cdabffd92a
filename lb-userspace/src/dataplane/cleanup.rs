//! `weir cleanup`: the only way to end the data path.

use std::{fs, path::Path};

use super::{
    bpffs::{BpffsError, is_on_bpffs, lock, names},
    migrate::{
        leftovers::{self, LeftoverError, map_pins},
        record::LAYOUTS,
    },
    pins::Pin,
    programs,
    release::ReleaseError,
};

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error(transparent)]
    Leftovers(#[from] LeftoverError),
}

/// Detaches every hook and removes every pin; returns what was done, empty if there was nothing to
/// do. Connections through Weir end.
pub fn cleanup(pin_dir: &Path) -> Result<Vec<String>, CleanupError> {
    let failed = |source| BpffsError::PinDir { path: pin_dir.to_owned(), source };
    if !fs::exists(pin_dir).map_err(failed)? {
        return Ok(Vec::new());
    }
    if !is_on_bpffs(pin_dir) {
        return Err(BpffsError::NoBpffs(pin_dir.to_owned()).into());
    }
    let _lock = lock(pin_dir)?;
    let mut done = Vec::new();
    leftovers::clear_marks(pin_dir)?;
    let mut refused = None;
    for pin in Pin::list(pin_dir).map_err(failed)? {
        match pin.release(pin_dir) {
            Ok(what) => done.push(what),
            Err(error) => {
                tracing::error!("{error}");
                refused = refused.or(Some(error));
            }
        }
    }
    // The maps stay as long as a hook may use them.
    if let Some(error) = refused {
        return Err(error.into());
    }
    let mut maps = map_pins(pin_dir)?;
    // The record goes last, so that a start after an interruption still knows the layouts of the
    // other maps.
    maps.sort_by_key(|name| name == LAYOUTS);
    for name in maps {
        leftovers::remove(pin_dir.join(&name))?;
        done.push(format!("removed map {name}"));
    }
    for path in programs::pins(pin_dir) {
        leftovers::remove(path)?;
    }
    let left = names(pin_dir).map_err(failed)?;
    if left.is_empty() {
        fs::remove_dir(pin_dir).map_err(failed)?;
        done.push(format!("removed {}", pin_dir.display()));
    } else {
        done.push(format!("left {}, which has files that are not Weir's: {}", pin_dir.display(), left.join(", ")));
    }
    Ok(done)
}
