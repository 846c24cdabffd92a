//! The data path: the loaded programs, their maps and hooks, all pinned so that they outlive the
//! agent. Existing pins are taken over.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::Ebpf;
use aya_obj::Object;
use nix::fcntl::Flock;

use super::{
    bpffs::{lock, prepare, remove_empty},
    hooks::{Hook, Hooks, TcHook},
    load::{BpfLog, LoadError, OBJECT, load_all},
    migrate::{
        Migration,
        record::{LAYOUTS, Record},
    },
    programs,
    sizes::MapSizes,
};
use crate::{model::XdpMode, node::interfaces::Interface};

const LOG_INTERVAL: Duration = Duration::from_millis(100);

/// The loaded programs and their pins. While this value lives, no other agent can use the same pin
/// directory; dropping it detaches nothing.
pub struct DataPath {
    pin_dir: PathBuf,
    ebpf: Ebpf,
    record: Record,
    hooks: Hooks,
    _lock: Flock<File>,
}

impl DataPath {
    /// Loads and pins the programs. Programs that are already attached stay until
    /// [`DataPath::sync`]; but if maps of another layout are pinned, the programs are replaced at
    /// once, together with the maps: see [`super::migrate`].
    pub fn open(pin_dir: &Path, log: BpfLog) -> Result<Self, LoadError> {
        Self::open_sized(pin_dir, log, &MapSizes::default())
    }

    /// Like `open`, with other numbers of entries in some maps.
    pub fn open_sized(pin_dir: &Path, log: BpfLog, sizes: &MapSizes) -> Result<Self, LoadError> {
        let is_new = prepare(pin_dir)?;
        let lock = lock(pin_dir)?;
        let opened = open_locked(pin_dir, log, sizes);
        if opened.is_err() && is_new {
            remove_empty(pin_dir);
        }
        let (ebpf, record) = opened?;
        let hooks = Hooks::new(pin_dir, TcHook::of_kernel());
        Ok(Self { pin_dir: pin_dir.to_owned(), ebpf, record, hooks, _lock: lock })
    }

    /// Writes the record of layouts again if its pin was deleted: without it the next start would
    /// need CAP_SYS_ADMIN.
    fn keep_record(&self) {
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

    /// Attaches at TC by clsact filters, as on kernels without tcx links, so that tests can cover
    /// this on other kernels.
    pub fn use_clsact(&mut self) {
        self.hooks.tc = TcHook::Clsact;
    }

    /// Attaches to the interfaces in `wanted` and releases all others: [`Hooks::sync`].
    pub fn sync(&mut self, wanted: &[&Interface], mode: XdpMode) -> Vec<Hook> {
        self.keep_record();
        self.hooks.sync(&mut self.ebpf, wanted, mode)
    }

    /// How often a hook of ours disappeared without our doing.
    pub const fn lost_hooks(&self) -> u64 {
        self.hooks.lost
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Starts a task that copies the program's log to ours. Use it with [`BpfLog::Debug`].
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
        // The pins are for the next build, in case the kernel refuses its program on a hook.
        tracing::error!(pin_dir = %pin_dir.display(), %error, "cannot pin the programs");
    }
    Ok((ebpf, record))
}
