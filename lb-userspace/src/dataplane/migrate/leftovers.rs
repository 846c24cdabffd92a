//! The pin directory during a migration, and what an interrupted migration leaves in it.
//!
//! A new map is pinned as `NAME-new` until every hook runs the new program; then its pin is renamed
//! to `NAME`, over the old one. Whether a hook already uses a `NAME-new` tells whether the
//! interruption came before or after the switch. Before it, the old maps are complete and the new
//! ones are thrown away; after it, the new maps are the valid ones, and the renaming is finished.
//! The [`Record`] says which maps the program of a hook uses.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapError, MapInfo},
    programs::ProgramInfo,
};

use super::record::{LAYOUTS, Record};
use crate::dataplane::{
    bpffs::{BpffsError, NEW, names, new_path},
    pins::Pin,
    programs,
};

#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("cannot look at the pinned map {}: {source}", .path.display())]
    Pinned { path: PathBuf, source: MapError },
    #[error(
        "whether an interrupted take-over had switched the hook {} cannot be told: its program {program} is not \
         recorded, and the kernel tells about it only to a process with CAP_SYS_ADMIN ({source}): start the agent \
         once with that capability, which ends no connection (docs/operations.md, \
         \"An agent without a record of the layouts\")",
        .hook.display()
    )]
    UnknownProgram { hook: PathBuf, program: u32, source: io::Error },
}

/// Every map of Weir's that is pinned under its own name, including maps that only another build
/// knows.
pub fn pinned_maps(pin_dir: &Path) -> Result<Vec<(String, MapData)>, LeftoverError> {
    let mut maps = Vec::new();
    for name in pinned(pin_dir)?.into_iter().filter(|name| is_map_name(name)) {
        if let Some(map) = open_ours(pin_dir, &name)? {
            maps.push((name, map));
        }
    }
    Ok(maps)
}

/// The pins of all of Weir's maps, including those of an unfinished migration.
pub fn map_pins(pin_dir: &Path) -> Result<Vec<String>, LeftoverError> {
    let mut pins = Vec::new();
    for pin in pinned(pin_dir)?.into_iter().filter(|pin| is_map_name(pin.strip_suffix(NEW).unwrap_or(pin))) {
        if open_ours(pin_dir, &pin)?.is_some() {
            pins.push(pin);
        }
    }
    Ok(pins)
}

/// The map under this pin if it is Weir's, that is, if the map has the name of the pin.
fn open_ours(pin_dir: &Path, pin: &str) -> Result<Option<MapData>, LeftoverError> {
    let path = pin_dir.join(pin);
    let map = MapData::from_pin(&path);
    let info = map.and_then(|map| Ok((map.info()?, map)));
    match info {
        // The kernel keeps only the first 15 bytes of a map's name.
        Ok((info, map)) => Ok((!info.name().is_empty() && pin.as_bytes().starts_with(info.name())).then_some(map)),
        // Something else is pinned there: another kind of object, or a directory.
        Err(MapError::SyscallError(error))
            if matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) =>
        {
            Ok(None)
        }
        Err(source) => Err(LeftoverError::Pinned { path, source }),
    }
}

fn is_map_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Cleans up after an interrupted migration; returns true if some hooks may be switched and others
/// not.
pub fn clear(pin_dir: &Path, record: &Record) -> Result<bool, LeftoverError> {
    clear_marks(pin_dir)?;
    let left = pinned(pin_dir)?.into_iter().filter_map(|name| name.strip_suffix(NEW).map(str::to_owned));
    let left: Vec<String> = left.filter(|name| is_map_name(name)).collect();
    if left.is_empty() {
        return Ok(false);
    }
    let in_use = maps_in_use(pin_dir, record)?;
    let mut is_past = false;
    for name in &left {
        let path = new_path(&pin_dir.join(name));
        let info = MapInfo::from_pin(&path).map_err(|source| LeftoverError::Pinned { path, source })?;
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
        tracing::warn!(maps = left.len(), "a start was interrupted before the switch: its new maps are thrown away");
    }
    Ok(is_past)
}

/// Removes the `-new` pins of the record, of programs and of hooks, left by an interruption before
/// they were renamed. Nothing depends on them: only the pin under the plain name counts.
pub fn clear_marks(pin_dir: &Path) -> Result<(), LeftoverError> {
    let is_mark = |name: &str| name == LAYOUTS || programs::PINS.contains(&name) || Pin::is_name(name);
    let marks = pinned(pin_dir)?;
    let marks = marks.iter().filter_map(|name| name.strip_suffix(NEW)).filter(|name| is_mark(name));
    marks.into_iter().try_for_each(|name| abandon(pin_dir, name))
}

/// Renames the new pin over the old one.
pub fn settle(pin_dir: &Path, name: &str) -> Result<(), LeftoverError> {
    let path = new_path(&pin_dir.join(name));
    fs::rename(&path, pin_dir.join(name)).map_err(unusable(path))
}

/// Removes the new pin; the old one stays.
pub fn abandon(pin_dir: &Path, name: &str) -> Result<(), LeftoverError> {
    remove(new_path(&pin_dir.join(name)))
}

/// Removes the pin of a map.
pub fn remove(path: PathBuf) -> Result<(), LeftoverError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(unusable(path)),
    }
}

/// The ids of the maps that the programs on our hooks use.
fn maps_in_use(pin_dir: &Path, record: &Record) -> Result<BTreeSet<u32>, LeftoverError> {
    let mut maps = BTreeSet::new();
    for pin in hooks(pin_dir)? {
        let hook = pin.path(pin_dir);
        let program = program_of(pin_dir, pin)?;
        match record.programs.get(&program) {
            Some(used) => maps.extend(used),
            None => {
                let used = programs::maps_by_id(program);
                maps.extend(used.map_err(|source| LeftoverError::UnknownProgram { hook, program, source })?);
            }
        }
    }
    Ok(maps)
}

/// The ids of the pinned programs and of the programs on our hooks. Hook pins that hold another
/// kind of object are skipped.
pub fn programs_in_use(pin_dir: &Path) -> Result<BTreeSet<u32>, LeftoverError> {
    let on_hooks = hooks(pin_dir)?.into_iter().filter_map(|pin| program_of(pin_dir, pin).ok());
    let pinned = programs::pins(pin_dir).into_iter().filter_map(|path| Some(ProgramInfo::from_pin(path).ok()?.id()));
    Ok(on_hooks.chain(pinned).collect())
}

fn hooks(pin_dir: &Path) -> Result<Vec<Pin>, LeftoverError> {
    let mut hooks = Pin::list(pin_dir).map_err(unusable(pin_dir))?;
    hooks.retain(|pin| pin.kind.is_hook());
    Ok(hooks)
}

fn program_of(pin_dir: &Path, pin: Pin) -> Result<u32, LeftoverError> {
    pin.program(pin_dir).map_err(unusable(pin.path(pin_dir)))
}

fn pinned(pin_dir: &Path) -> Result<Vec<String>, LeftoverError> {
    names(pin_dir).map_err(unusable(pin_dir))
}

/// The error for a path of the pin directory.
fn unusable(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LeftoverError {
    let path = path.into();
    move |source| BpffsError::PinDir { path, source }.into()
}
