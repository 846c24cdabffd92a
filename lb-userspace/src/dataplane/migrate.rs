//! Takes over the pinned maps of another build, whose layouts may differ, without rebuilding them:
//! copy, switch the hooks, copy again.
//!
//! 1. [`MigrationPlan`] looks at what is pinned and changes nothing. A map that is already as this
//!    build would make it is taken over; the others are made anew, pinned as `NAME-new`. The layout
//!    of their entries comes from the [`record`], or else from their BTF, which the kernel keeps,
//!    so no code deals with versions: [`convert`].
//! 2. The new programs are loaded with the new maps. These are filled from the old ones and then
//!    brought up to date: [`copy`].
//! 3. Every hook gets the new program: [`switch`]. From before the last copy until the end of the
//!    next one, `Settings::FLAG_HANDOVER` makes both programs drop packets that they would
//!    otherwise reset as unknown: the other program's map may know the flow, and TCP retransmits.
//! 4. The old program's writes since the last copy are brought over: [`merge`]. Then the pins are
//!    renamed, and the old maps are freed with the old programs.
//!
//! Maps that were not pinned before are treated the same way, so that a start that fails or is
//! interrupted leaves no new pin behind.
//!
//! The migration ends before the agent writes anything, so both programs see what the previous
//! agent left in the maps. [`leftovers`] describes what an interrupted migration leaves behind.

mod btf;
pub mod convert;
pub mod copy;
mod extent;
pub mod layout;
pub(super) mod leftovers;
mod meaning;
pub mod merge;
mod plan;
pub mod record;
mod settings;
mod switch;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{MapData, MapInfo},
};
use lb_common::{
    limits::map,
    settings::{LAYOUT, Settings},
};

use self::{
    copy::{CopyError, Pair},
    leftovers::LeftoverError,
    plan::{Content, MigrationPlan, MigrationPlanError},
    record::{Record, RecordError},
    settings::PinnedSettings,
    switch::{SwitchError, SwitchedHooks},
};
use super::{bpffs::new_path, maps, programs, sizes::MapSizes};

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Leftovers(#[from] LeftoverError),
    #[error(transparent)]
    Plan(#[from] MigrationPlanError),
    #[error(
        "the pinned map {map} cannot become this build's: {source}; nothing was changed: start the build that made \
        it, or give the map more room; \
             `weir cleanup` ends the data path and removes it"
    )]
    Copy { map: &'static str, source: CopyError },
    #[error("the new programs cannot take over, the old ones go on: {0}")]
    Switch(#[from] SwitchError),
    #[error("cannot list the hooks in {}: {source}", .path.display())]
    Hooks { path: PathBuf, source: std::io::Error },
    #[error("cannot look at the programs that were just loaded: {0}")]
    Programs(aya::programs::ProgramError),
}

/// A migration that has begun: the new maps are pinned beside the old ones.
pub struct Migration {
    pin_dir: PathBuf,
    plan: MigrationPlan,
    /// The record of the pinned maps as it was read at the start.
    record: Record,
    /// An earlier migration was interrupted after hooks had been switched.
    resumes: bool,
    /// The hooks run the new programs: there is no way back.
    is_past: bool,
}

impl Migration {
    /// Looks at what is pinned. Cleans up after an interrupted migration, and changes nothing else.
    pub fn begin(pin_dir: &Path, object: &aya_obj::Object, sizes: &MapSizes) -> Result<Self, MigrateError> {
        let record = match Record::read(pin_dir) {
            Ok(record) => record.unwrap_or_default(),
            // The kernel can still tell the layouts and the maps in use, but asking needs
            // CAP_SYS_ADMIN.
            Err(error @ (RecordError::Damaged { .. } | RecordError::Read { .. })) => {
                tracing::warn!(%error, "cannot use the record of layouts; a new one will be written");
                Record::default()
            }
            Err(error) => return Err(MigrationPlanError::from(error).into()),
        };
        let resumes = leftovers::clear(pin_dir, &record)?;
        let plan = MigrationPlan::of(pin_dir, &record, object, sizes)?;
        Ok(Self { pin_dir: pin_dir.to_owned(), plan, record, resumes, is_past: false })
    }

    /// Where to pin the map of this name when it is loaded.
    pub fn pin_path(&self, name: &str) -> PathBuf {
        let is_new = self.plan.new_maps().any(|new| new == name);
        if is_new { new_path(&self.pin_dir.join(name)) } else { self.pin_dir.join(name) }
    }

    /// Writes down the layouts of the pinned maps, old and new, and which maps are used by the
    /// programs of `ebpf` and by those on the hooks: all that the next start needs if this one is
    /// interrupted at any point.
    pub fn record(&self, ebpf: &Ebpf) -> Result<Record, MigrateError> {
        let in_use = leftovers::programs_in_use(&self.pin_dir)?;
        let mut record = Record { maps: self.plan.pinned.clone(), programs: self.record.programs.clone() };
        record.programs.retain(|program, _| in_use.contains(program));
        let mut maps = BTreeSet::new();
        for name in map::PINNED {
            let path = self.pin_path(name);
            let info = MapInfo::from_pin(&path).map_err(|source| LeftoverError::Pinned { path, source })?;
            maps.insert(info.id());
            if let Some(layout) = self.plan.built.get(name) {
                record.maps.insert(info.id(), layout.clone());
            }
        }
        for id in programs::ids(ebpf).map_err(MigrateError::Programs)? {
            record.programs.insert(id, maps.clone());
        }
        record.write(&self.pin_dir).map_err(MigrationPlanError::from)?;
        Ok(record)
    }

    /// Removes the new maps, unless hooks already use them; the old data path goes on unchanged.
    pub fn abandon(&self) {
        if self.is_past {
            return;
        }
        for name in self.plan.new_maps() {
            if let Err(error) = leftovers::abandon(&self.pin_dir, name) {
                tracing::error!(%error, "the next start removes it");
            }
        }
    }

    /// Fills the new maps, switches the hooks to the programs of `ebpf`, which use the new maps,
    /// and replaces the pins of the old maps. After an error, either nothing has changed or the
    /// next start finishes the migration.
    pub fn run(&mut self, ebpf: &mut Ebpf) -> Result<(), MigrateError> {
        if self.plan.changes_nothing() && !self.resumes {
            return self.settle();
        }
        let begun = Instant::now();
        let mut pairs = self.pairs()?;
        for (_, pair) in &mut pairs {
            in_map(pair.name, pair.copy())?;
        }
        let hooks = SwitchedHooks::open(&self.pin_dir)
            .map_err(|source| MigrateError::Hooks { path: self.pin_dir.clone(), source })?;
        let handover = self.hand_over(&hooks, &mut pairs, ebpf)?;
        for (_, pair) in &pairs {
            let what = self.plan.changes.iter().find(|change| change.name == pair.name);
            tracing::info!(
                map = pair.name,
                entries = pair.entries(),
                change = what.map_or("", |change| &change.what),
                "map migrated"
            );
        }
        self.settle()?;
        for name in &self.plan.unknown {
            leftovers::remove(self.pin_dir.join(name))?;
            tracing::info!(map = name, "map removed: this build does not know it, and would not keep it in sync");
        }
        let (hooks, maps) = (hooks.len(), self.plan.changes.len());
        let (took_ms, handover_ms) = (milliseconds(begun.elapsed()), milliseconds(handover));
        tracing::info!(maps, hooks, took_ms, handover_ms, "took over the data path of another build");
        Ok(())
    }

    /// Renames the pins of the new maps over those of the old ones.
    fn settle(&mut self) -> Result<(), MigrateError> {
        self.is_past = true;
        Ok(self.plan.new_maps().try_for_each(|name| leftovers::settle(&self.pin_dir, name))?)
    }

    fn pairs(&mut self) -> Result<Vec<(Content, Pair)>, MigrateError> {
        let mut pairs = Vec::new();
        for change in &mut self.plan.changes {
            let Some(way) = change.way.take() else { continue };
            let open = |path: PathBuf| in_map(change.name, MapData::from_pin(path).map_err(CopyError::from));
            let old = open(self.pin_dir.join(change.name))?;
            let new = open(new_path(&self.pin_dir.join(change.name)))?;
            pairs.push((change.content, in_map(change.name, Pair::new(change.name, old, new, way))?));
        }
        Ok(pairs)
    }

    /// Switches the hooks and makes the copies around the switch; returns how long the programs ran
    /// with `FLAG_HANDOVER`.
    fn hand_over(
        &mut self,
        hooks: &SwitchedHooks,
        pairs: &mut [(Content, Pair)],
        ebpf: &mut Ebpf,
    ) -> Result<Duration, MigrateError> {
        let settings = self.settings()?;
        let be_patient = |patient: bool| {
            let flag = u64::from(Settings::FLAG_HANDOVER);
            let change = |flags| if patient { flags | flag } else { flags & !flag };
            settings.iter().try_for_each(|settings| in_map(map::SETTINGS, settings.change("flags", change)))
        };
        if let Some(new) = settings.last() {
            in_map(map::SETTINGS, new.change("layout", |from| if from == 0 { 0 } else { u64::from(LAYOUT) }))?;
        }
        catch_up(pairs, Content::Counted)?;
        let begun = Instant::now();
        be_patient(true)?;
        let switched = catch_up(pairs, Content::Remembered).and_then(|()| Ok(hooks.switch(ebpf, &self.record)?));
        if let Err(error) = switched {
            // A hook that keeps the new program needs the new maps: the next start finishes the
            // migration.
            self.is_past = matches!(&error, MigrateError::Switch(error) if error.is_half_done);
            be_patient(false)?;
            return Err(error);
        }
        // From here on there is no way back: errors are logged, and the remaining steps still run.
        self.is_past = true;
        if let Err(error) = maps::grace_period() {
            tracing::error!(%error, "old programs may still have run while their last writes were brought over");
        }
        finish(pairs, Content::Remembered);
        if let Err(error) = be_patient(false) {
            tracing::error!(%error, "packets of unknown flows are dropped, not reset, until the settings are written");
        }
        let handover = begun.elapsed();
        finish(pairs, Content::Counted);
        Ok(handover)
    }

    /// The pinned `SETTINGS` of the old program and of the new one, which may be the same map.
    fn settings(&self) -> Result<Vec<PinnedSettings>, MigrateError> {
        let Some((old, new)) = &self.plan.settings else { return Ok(Vec::new()) };
        let open = |path: PathBuf, value| -> Result<PinnedSettings, MigrateError> {
            let map = in_map(map::SETTINGS, MapData::from_pin(path).map_err(CopyError::from))?;
            Ok(PinnedSettings::new(map, value))
        };
        let (path, new_path) = (self.pin_dir.join(map::SETTINGS), self.pin_path(map::SETTINGS));
        let mut settings = vec![open(path.clone(), old)?];
        if new_path != path {
            settings.push(open(new_path, new)?);
        }
        Ok(settings)
    }
}

fn catch_up(pairs: &mut [(Content, Pair)], content: Content) -> Result<(), MigrateError> {
    let mut pairs = pairs.iter_mut().filter(|(of, _)| *of == content);
    pairs.try_for_each(|(_, pair)| in_map(pair.name, pair.catch_up()))
}

fn finish(pairs: &mut [(Content, Pair)], content: Content) {
    for (_, pair) in pairs.iter_mut().filter(|(of, _)| *of == content) {
        match pair.finish() {
            Ok(brought) if brought.lost == 0 => {}
            Ok(brought) => {
                tracing::error!(
                    map = pair.name,
                    entries = brought.lost,
                    "last entries of the old program have no room"
                );
            }
            Err(error) => {
                tracing::error!(map = pair.name, %error, "cannot copy the old program's last writes")
            }
        }
    }
}

fn in_map<T>(map: &'static str, result: Result<T, CopyError>) -> Result<T, MigrateError> {
    result.map_err(|source| MigrateError::Copy { map, source })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
