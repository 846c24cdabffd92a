//! The programs apart from their hooks: their pins, by which the next agent finds the old programs,
//! and what the kernel reports about them.
//!
//! A hook's program is opened by its pin and never by its id, which would need CAP_SYS_ADMIN.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    pin::PinError,
    programs::{Program, ProgramError, ProgramInfo, loaded_programs},
};
use lb_common::limits::program;

use super::{
    bpffs::pin_over,
    raw::{errno, objects},
};

/// The pins of the programs loaded last, in the order of [`PROGRAMS`].
pub const PINS: [&str; 3] = ["program-weir_xdp", "program-weir_ingress", "program-weir_egress"];
const PROGRAMS: [&str; 3] = [program::XDP, program::INGRESS, program::EGRESS];

/// The ids of the programs of a loaded object.
pub fn ids(ebpf: &Ebpf) -> Result<Vec<u32>, ProgramError> {
    let info = |name| match ebpf.program(name) {
        Some(Program::Xdp(program)) => program.info(),
        Some(Program::SchedClassifier(program)) => program.info(),
        _ => Err(ProgramError::NotLoaded),
    };
    PROGRAMS.into_iter().map(|name| Ok(info(name)?.id())).collect()
}

/// Pins the programs of a loaded object, replacing the pins of earlier ones.
pub fn pin(ebpf: &mut Ebpf, pin_dir: &Path) -> Result<(), PinError> {
    for (name, pin) in PROGRAMS.into_iter().zip(PINS) {
        let path = pin_dir.join(pin);
        match ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => pin_over(&path, |path| program.pin(path))?,
            Some(Program::SchedClassifier(program)) => pin_over(&path, |path| program.pin(path))?,
            _ => {}
        }
    }
    Ok(())
}

/// The pinned program of this name from an earlier load, and its id.
pub fn pinned(pin_dir: &Path, name: &str) -> io::Result<(u32, OwnedFd)> {
    let pin = PROGRAMS.into_iter().zip(PINS).find(|(program, _)| *program == name);
    let (_, pin) = pin.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let path = pin_dir.join(pin);
    let id = ProgramInfo::from_pin(&path).map_err(io::Error::other)?.id();
    Ok((id, objects::open_pinned(&path)?))
}

/// The pins of programs in `pin_dir`.
pub fn pins(pin_dir: &Path) -> Vec<PathBuf> {
    PINS.into_iter().map(|pin| pin_dir.join(pin)).filter(|path| path.exists()).collect()
}

/// The result of [`name_by_id`].
pub enum Name {
    Known(String),
    /// The program is gone, or has no name.
    None,
    /// The kernel gives the name only to CAP_SYS_ADMIN.
    Forbidden,
}

/// The name of any program, ours or not.
pub fn name_by_id(id: u32) -> Name {
    match by_id(id) {
        Ok(Some(info)) => match info.name_as_str() {
            Some(name) if !name.is_empty() => Name::Known(name.to_owned()),
            _ => Name::None,
        },
        Ok(None) => Name::None,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Name::Forbidden,
        Err(_) => Name::None,
    }
}

/// The ids of the maps of a loaded program; empty if the program is gone. An error if this process
/// may not ask.
pub fn maps_by_id(id: u32) -> io::Result<Vec<u32>> {
    let Some(info) = by_id(id)? else { return Ok(Vec::new()) };
    Ok(info.map_ids().map_err(io::Error::other)?.unwrap_or_default())
}

/// The program of this id; `None` if there is none. An error if this process lacks CAP_SYS_ADMIN,
/// which the query needs.
fn by_id(id: u32) -> io::Result<Option<ProgramInfo>> {
    for info in loaded_programs() {
        match info {
            Ok(info) if info.id() == id => return Ok(Some(info)),
            Ok(_) => {}
            Err(error) => match errno(&error) {
                Some(libc::EPERM) => return Err(io::Error::from_raw_os_error(libc::EPERM)),
                // A program that ended while the list was walked.
                Some(libc::ENOENT) => {}
                _ => return Err(io::Error::other(error)),
            },
        }
    }
    Ok(None)
}
