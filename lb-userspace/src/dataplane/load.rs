//! Loads the eBPF object and lets the kernel verify its programs.

use std::{collections::BTreeMap, panic::resume_unwind, thread};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError},
};
use lb_common::{
    filter,
    limits::{map, program},
};

use super::{
    bpffs::BpffsError,
    maps::MapsError,
    migrate::{MigrateError, Migration},
    sizes::MapSizes,
};

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEIR_BPF_OBJECT_PATH"));

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("the embedded eBPF object cannot be read ({0}): build Weir again with `cargo xtask build`")]
    Object(String),
    #[error("the embedded eBPF object has no {0}: build Weir again with `cargo xtask build`")]
    Incomplete(&'static str),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Maps(#[from] MapsError),
    #[error("cannot load the eBPF object: {0} (`weir doctor` says what is missing)")]
    Load(#[from] EbpfError),
    #[error("the kernel refuses the program {program}: {reason} (`weir doctor` says what is missing)")]
    Program { program: &'static str, reason: String },
}

impl LoadError {
    /// The error for a program that the kernel refused. The verifier's log may have thousands of
    /// lines; only the last ones give the reason.
    fn refused(program: &'static str, error: &ProgramError) -> Self {
        const LINES: usize = 12;
        let ProgramError::LoadError { io_error, verifier_log } = error else {
            return LoadError::Program { program, reason: error.to_string() };
        };
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut reason = io_error.to_string();
        if !lines.is_empty() {
            tracing::debug!(program, log, "the whole log of the verifier");
            let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
            reason.push_str(&format!(
                "; the last {} of the {} lines of the verifier's log, which `--log-level debug` shows whole:\n    \
                {}\n ",
                last.len(),
                lines.len(),
                last.join("\n    ")
            ));
        }
        LoadError::Program { program, reason }
    }
}

/// Whether the program logs single packets; compiled in, off by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BpfLog {
    #[default]
    Off,
    Debug,
}

/// Loads the object with its maps, pinned where the migration decides, and every program.
pub(super) fn load_all(migration: &Migration, log: BpfLog, sizes: &MapSizes) -> Result<Ebpf, LoadError> {
    let level: u8 = match log {
        BpfLog::Off => 0,
        BpfLog::Debug => aya_log::Level::Debug as u8,
    };
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    for name in map::PINNED {
        loader.map_pin_path(name, migration.pin_path(name));
    }
    let filter_shift = filter::shift(sizes.get(map::ADDRESS_FILTER).unwrap_or(filter::FILTER_WORDS));
    loader.override_global("ADDRESS_FILTER_SHIFT", &filter_shift, true);
    for (name, entries) in sizes.iter() {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.load(OBJECT)?;
    for name in map::PINNED {
        ebpf.map(name).ok_or(LoadError::Incomplete(name))?;
    }
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads every program, each in a thread of its own: the verifier takes most of an agent's start,
/// and verifies programs side by side.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let mut programs: BTreeMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let mut program = |name| programs.remove(name).ok_or(LoadError::Incomplete(name)).map(|program| (name, program));
    let all = [program(program::XDP)?, program(program::INGRESS)?, program(program::EGRESS)?];
    let load = |(name, program): (&'static str, &mut Program)| {
        let loaded = match program {
            Program::Xdp(xdp) => xdp.load(),
            Program::SchedClassifier(classifier) => classifier.load(),
            _ => return Err(LoadError::Incomplete(name)),
        };
        loaded.map_err(|error| LoadError::refused(name, &error))
    };
    thread::scope(|scope| {
        let loading = all.map(|one| scope.spawn(move || load(one)));
        let loaded = loading.map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
        loaded.into_iter().collect()
    })
}
