//! The pin directory while a migration is on, and what one that was interrupted has left there.
//!
//! A new map is pinned as `NAME-new` until every hook runs the new program; then it is renamed to `NAME`, over the old one. Whether a hook
//! already uses a `NAME-new` says on which side of the switch an interruption came: before it, the old maps are whole and the new ones are thrown
//! away; after it, the new ones are what counts, and the renaming is done to its end.

use std::{
    collections::BTreeSet,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapError, MapInfo},
    programs::{
        ProgramInfo,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};

use super::plan::PlanError;
use crate::dataplane::pins::{Pin, names};

/// A bpffs keeps names with dots for itself.
const NEW: &str = "-new";

/// Where the new map of this name is pinned.
pub fn new_path(pin_dir: &Path, name: &str) -> PathBuf {
    pin_dir.join(format!("{name}{NEW}"))
}

/// Every map of Weir's that is pinned under its own name, also those that only another build knows.
pub fn pinned_maps(pin_dir: &Path) -> Result<Vec<(String, MapData)>, PlanError> {
    let mut maps = Vec::new();
    for name in pinned(pin_dir)?.into_iter().filter(|name| is_map_name(name)) {
        if let Some(map) = open_ours(pin_dir, &name)? {
            maps.push((name, map));
        }
    }
    Ok(maps)
}

/// The pins of all maps of Weir's, finished or not.
pub fn map_pins(pin_dir: &Path) -> Result<Vec<String>, PlanError> {
    let mut pins = Vec::new();
    for pin in pinned(pin_dir)?.into_iter().filter(|pin| is_map_name(pin.strip_suffix(NEW).unwrap_or(pin))) {
        if open_ours(pin_dir, &pin)?.is_some() {
            pins.push(pin);
        }
    }
    Ok(pins)
}

/// The map under this pin if it is Weir's: one of which the pin has the name.
fn open_ours(pin_dir: &Path, pin: &str) -> Result<Option<MapData>, PlanError> {
    let path = pin_dir.join(pin);
    let map = MapData::from_pin(&path);
    let info = map.and_then(|map| Ok((map.info()?, map)));
    match info {
        // The kernel keeps the first 15 bytes.
        Ok((info, map)) => Ok((!info.name().is_empty() && pin.as_bytes().starts_with(info.name())).then_some(map)),
        // Something else is there: another kind of object, a directory.
        Err(MapError::SyscallError(error))
            if matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) =>
        {
            Ok(None)
        }
        Err(source) => Err(PlanError::Pinned { path, source }),
    }
}

fn is_map_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Puts right what an interrupted migration has left; true if hooks may be on either side of it.
pub fn clear(pin_dir: &Path) -> Result<bool, PlanError> {
    let left: Vec<String> =
        pinned(pin_dir)?.iter().filter_map(|name| name.strip_suffix(NEW)).map(str::to_owned).collect();
    if left.is_empty() {
        return Ok(false);
    }
    let in_use = maps_in_use(pin_dir)?;
    let mut is_past = false;
    for name in &left {
        let path = new_path(pin_dir, name);
        let info = MapInfo::from_pin(&path).map_err(|source| PlanError::Pinned { path, source })?;
        is_past |= in_use.contains(&info.id());
    }
    for name in &left {
        if is_past {
            settle(pin_dir, name)?;
        } else {
            abandon(pin_dir, name)?;
        }
    }
    if is_past {
        tracing::warn!(
            maps = left.len(),
            "a migration was interrupted after hooks had been switched: taking its new maps"
        );
    } else {
        tracing::warn!(
            maps = left.len(),
            "a migration was interrupted before the switch: its new maps are thrown away"
        );
    }
    Ok(is_past)
}

/// The new map takes the place of the old one.
pub fn settle(pin_dir: &Path, name: &str) -> Result<(), PlanError> {
    let path = new_path(pin_dir, name);
    fs::rename(&path, pin_dir.join(name)).map_err(|source| PlanError::PinDir { path, source })
}

/// The old map stays.
pub fn abandon(pin_dir: &Path, name: &str) -> Result<(), PlanError> {
    remove(new_path(pin_dir, name))
}

/// Removes the pin of a map.
pub fn remove(path: PathBuf) -> Result<(), PlanError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| PlanError::PinDir { path, source }),
    }
}

/// The maps of the programs on our hooks, by their ids.
fn maps_in_use(pin_dir: &Path) -> Result<BTreeSet<u32>, PlanError> {
    let mut maps = BTreeSet::new();
    for pin in Pin::list(pin_dir).map_err(|source| PlanError::PinDir { path: pin_dir.to_owned(), source })? {
        let path = pin.path(pin_dir);
        let of_hook = maps_of_hook(pin, &path);
        maps.extend(of_hook.map_err(|source| PlanError::PinDir { path, source: io::Error::other(source) })?);
    }
    Ok(maps)
}

fn maps_of_hook(pin: Pin, path: &Path) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
    if !pin.kind.is_link() {
        return Ok(ProgramInfo::from_pin(path)?.map_ids()?.unwrap_or_default());
    }
    let program = FdLink::from(PinnedLink::from_pin(path)?).info()?.program_id();
    let program = loaded_programs().filter_map(Result::ok).find(|info| info.id() == program);
    Ok(program.map_or(Ok(None), |program| program.map_ids())?.unwrap_or_default())
}

fn pinned(pin_dir: &Path) -> Result<Vec<String>, PlanError> {
    names(pin_dir).map_err(|source| PlanError::PinDir { path: pin_dir.to_owned(), source })
}
