//! Loads the eBPF object and pins its maps, so that the data path outlives the agent. What is
//! pinned already is taken over.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{ProgramError, SchedClassifier, Xdp},
};
use aya_obj::Object;
use lb_common::limits::{map, program};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    attach::{Hooks, TcHook},
    maps::MapsError,
    migrate::{
        MigrateError, Migration,
        plan::MapSizes,
        record::{LAYOUTS, Record},
    },
    programs,
};

/// Where the agent pins by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/weir";

const LOG_INTERVAL: Duration = Duration::from_millis(100);

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEIR_BPF_OBJECT_PATH"));

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, or choose another --pin-dir", .0.display())]
    NoBpffs(PathBuf),
    #[error("cannot use the pin directory {}: {source}", .path.display())]
    PinDir { path: PathBuf, source: io::Error },
    #[error("another weir agent runs with the pin directory {}: stop it, or choose another --pin-dir", .0.display())]
    InUse(PathBuf),
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
    /// A program that the kernel refused. The verifier's log may have thousands of lines, of which
    /// the last ones say why.
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
                "; the last {} of the {} lines of the verifier's log, which `--log-level debug` shows whole:\n    {}\n ",
                last.len(),
                lines.len(),
                last.join("\n    ")
            ));
        }
        LoadError::Program { program, reason }
    }
}

/// What the program logs about single packets; compiled in, off by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BpfLog {
    #[default]
    Off,
    Debug,
}

/// The loaded programs and their pins. While it lives no other agent uses the same pin directory;
/// dropping it detaches nothing.
pub struct DataPath {
    pub(super) pin_dir: PathBuf,
    pub(super) ebpf: Ebpf,
    record: Record,
    pub(super) hooks: Hooks,
    /// How its programs are attached at TC.
    pub(super) tc: TcHook,
    _lock: Flock<File>,
}

impl DataPath {
    /// Loads and pins. Programs that are attached already go on as they are until
    /// [`DataPath::sync`]; if maps of another layout are pinned, they are replaced at once, with
    /// the maps: see [`super::migrate`].
    pub fn open(pin_dir: &Path, log: BpfLog) -> Result<Self, LoadError> {
        Self::open_sized(pin_dir, log, &MapSizes::new())
    }

    /// The same with another number of entries in some maps.
    pub fn open_sized(pin_dir: &Path, log: BpfLog, sizes: &MapSizes) -> Result<Self, LoadError> {
        let is_new = prepare(pin_dir)?;
        let lock = lock(pin_dir)?;
        let opened = open_locked(pin_dir, log, sizes);
        if opened.is_err() && is_new {
            remove_empty(pin_dir);
        }
        let (ebpf, record) = opened?;
        let (hooks, tc) = (Hooks::default(), TcHook::of_kernel());
        Ok(Self { pin_dir: pin_dir.to_owned(), ebpf, record, hooks, tc, _lock: lock })
    }

    /// Writes the record of the layouts again if somebody has deleted its pin: without it the next
    /// start would need CAP_SYS_ADMIN.
    pub(super) fn keep_record(&self) {
        if self.pin_dir.join(LAYOUTS).exists() {
            return;
        }
        match self.record.write(&self.pin_dir) {
            Ok(()) => {
                tracing::warn!(pin_dir = %self.pin_dir.display(), "the pin of {LAYOUTS} was gone; it is written again")
            }
            Err(error) => tracing::error!(%error, "the pin of {LAYOUTS} is gone, and cannot be written again"),
        }
    }

    /// Attaches at TC by filters of clsact, as on kernels without tcx links; for tests of that on
    /// others.
    pub fn use_clsact(&mut self) {
        self.tc = TcHook::Clsact;
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Starts a task that writes what the program logs to our log. Use it with [`BpfLog::Debug`].
    pub fn forward_log(&mut self) {
        match aya_log::EbpfLogger::init(&mut self.ebpf) {
            Ok(mut logger) => {
                tokio::spawn(async move {
                    let mut tick = tokio::time::interval(LOG_INTERVAL);
                    loop {
                        tick.tick().await;
                        logger.flush();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "the log of the eBPF program cannot be read"),
        }
    }
}

fn open_locked(pin_dir: &Path, log: BpfLog, sizes: &MapSizes) -> Result<(Ebpf, Record), LoadError> {
    let object = Object::parse(OBJECT).map_err(|error| LoadError::Object(error.to_string()))?;
    let mut migration = Migration::begin(pin_dir, &object, sizes)?;
    let opened = load_all(&migration, log, sizes).and_then(|mut ebpf| {
        let record = migration.record(&ebpf)?;
        migration.run(&mut ebpf)?;
        Ok((ebpf, record))
    });
    if opened.is_err() {
        migration.abandon();
    }
    let (mut ebpf, record) = opened?;
    if let Err(error) = programs::pin(&mut ebpf, pin_dir) {
        // They are for the next build, should the kernel refuse it a hook.
        tracing::error!(pin_dir = %pin_dir.display(), %error, "cannot pin the programs");
    }
    Ok((ebpf, record))
}

/// What a first start that failed had made.
fn remove_empty(pin_dir: &Path) {
    match std::fs::remove_dir(pin_dir) {
        Ok(()) => {}
        Err(error) => tracing::debug!(pin_dir = %pin_dir.display(), %error, "the pin directory stays"),
    }
}

fn load_all(migration: &Migration, log: BpfLog, sizes: &MapSizes) -> Result<Ebpf, LoadError> {
    let level: u8 = match log {
        BpfLog::Off => 0,
        BpfLog::Debug => aya_log::Level::Debug as u8,
    };
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    for name in map::PINNED {
        loader.map_pin_path(name, migration.pin_path(name));
    }
    for (name, entries) in sizes {
        loader.map_max_entries(name, *entries);
    }
    let mut ebpf = loader.load(OBJECT)?;
    for name in map::PINNED {
        ebpf.map(name).ok_or(LoadError::Incomplete(name))?;
    }
    load::<Xdp>(&mut ebpf, program::XDP, Xdp::load)?;
    load::<SchedClassifier>(&mut ebpf, program::INGRESS, SchedClassifier::load)?;
    load::<SchedClassifier>(&mut ebpf, program::EGRESS, SchedClassifier::load)?;
    Ok(ebpf)
}

fn load<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<(), LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    P: 'a,
{
    let program = ebpf.program_mut(name).ok_or(LoadError::Incomplete(name))?;
    let program: &mut P = program.try_into().map_err(|error| LoadError::refused(name, &error))?;
    load(program).map_err(|error| LoadError::refused(name, &error))
}

/// Makes the pin directory, which must be on a bpffs; whether there was none.
fn prepare(pin_dir: &Path) -> Result<bool, LoadError> {
    if !is_on_bpffs(pin_dir) {
        return Err(LoadError::NoBpffs(pin_dir.to_owned()));
    }
    let is_new = !pin_dir.exists();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(pin_dir);
    made.map_err(|source| LoadError::PinDir { path: pin_dir.to_owned(), source })?;
    Ok(is_new)
}

/// Whether `path`, or what there is of it, is on a BPF file system.
pub fn is_on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|file_system| file_system.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn lock(pin_dir: &Path) -> Result<Flock<File>, LoadError> {
    let failed = |source| LoadError::PinDir { path: pin_dir.to_owned(), source };
    let directory = File::open(pin_dir).map_err(failed)?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(LoadError::InUse(pin_dir.to_owned())),
        Err((_, error)) => Err(failed(error.into())),
    }
}
