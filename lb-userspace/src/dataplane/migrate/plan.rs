//! Decides what happens to each pinned map, before anything is changed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapType};
use aya_obj::Object;
use lb_common::{limits::map, settings::LAYOUT};

use super::{
    btf::{Btf, BtfError},
    convert::{Conversion, EntryPart, Impossible},
    copy::{CopyError, Way},
    extent::Extent,
    layout::{Layout, Layouts, Type, differences},
    leftovers::{LeftoverError, pinned_maps},
    meaning,
    merge::Merge,
    record::{LAYOUTS, Record, RecordError},
    settings::PinnedSettings,
};
use crate::{
    dataplane::{
        raw::objects::{MapTypes, map_types},
        sizes::MapSizes,
    },
    model::limits::{Limit, LimitedMap},
};

/// What happens to the pinned maps.
#[derive(Default, Debug)]
pub struct MigrationPlan {
    /// Pinned maps that can't be taken over as they are.
    pub changes: Vec<MapChange>,
    /// Maps of this build that are not pinned yet.
    pub appearing: Vec<&'static str>,
    /// Maps of Weir's whose names this build does not know.
    pub unknown: Vec<String>,
    /// The layouts of the pinned maps, by their ids.
    pub pinned: Layouts,
    /// The layouts of this build's maps, by their names.
    pub built: BTreeMap<&'static str, Layout>,
    /// The type of the value of `SETTINGS`, as pinned and as in this build; `None` if it is not
    /// pinned.
    pub settings: Option<(Type, Type)>,
}

/// A map that is made anew.
#[derive(Debug)]
pub struct MapChange {
    pub name: &'static str,
    /// `None`: its contents are transient and not copied.
    pub way: Option<Way>,
    pub content: Content,
    /// The new number of entries, if there are fewer than before.
    pub shrinks_to: Option<u32>,
    /// What changes, for the log.
    pub what: String,
}

/// What a map holds, which decides when it is copied during the handover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Written by the agent only: one copy is enough.
    Told,
    /// Counters: no decision depends on them, so they are brought up to date outside the handover.
    Counted,
    /// State that the programs keep and base decisions on.
    Remembered,
}

impl Content {
    fn of(name: &str, map: &Described) -> Self {
        match name {
            map::SETTINGS
            | map::ADDRESS_FILTER
            | map::ADDRESSES_V4
            | map::ADDRESSES_V6
            | map::SERVICES_V4
            | map::SERVICES_V6
            | map::SERVICES_EPOCH
            | map::BACKENDS
            | map::SNAT_ADDRESSES
            | map::SLOT_TIMES
            | map::PEERS_V4
            | map::PEERS_V6
            | map::TRACE_FILTER
            | map::WAYS_OUT => Content::Told,
            map::SNAT_CURSORS => Content::Counted,
            _ if map.is_per_cpu() => Content::Counted,
            _ => Content::Remembered,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MigrationPlanError {
    #[error(transparent)]
    Leftovers(#[from] LeftoverError),
    #[error("the eBPF object does not describe the map {map}: {source}: build Weir again with `cargo xtask build`")]
    Object { map: &'static str, source: BtfError },
    #[error(
        "the pinned map {map} cannot become this build's: {why}: start the build that made it; or `weir cleanup` ends \
        the data path and removes it"
    )]
    Impossible { map: &'static str, why: String },
    #[error(
        "what the pinned map {map} holds is not recorded in {}, and the kernel tells it only to a process with \
        CAP_SYS_ADMIN ({source}): start \
         the agent once with that capability, which ends no connection (docs/operations.md, \"An agent without a \
             record of the layouts\")",
        .record.display()
    )]
    Unrecorded { map: String, record: PathBuf, source: io::Error },
    #[error(
        "{} cannot be lowered that far: the pinned map {map} would have room for {entries} entries, and those up to \
         {needed} are in use; nothing was changed: set it to {} or more, or first remove what uses them from the \
         configuration and wait for drains to end",
        .map.limit.key(),
        .map.limit_for(*.needed),
        map = .map.name
    )]
    TooSmall { map: &'static LimitedMap, entries: u32, needed: u32 },
    #[error("cannot see how much of the pinned maps is in use: {source}")]
    Extent { source: CopyError },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot read the pinned map SETTINGS: {source}")]
    Settings { source: CopyError },
    #[error(
        "what the pinned maps hold has another meaning to this build (layout {from}; this build has {LAYOUT}): start \
        the build that made them; \
         or `weir cleanup` ends the data path and removes them"
    )]
    Meaning { from: u32 },
}

impl MigrationPlan {
    /// Looks at what is pinned in `pin_dir`; `record` has the layouts.
    pub fn of(pin_dir: &Path, record: &Record, object: &Object, sizes: &MapSizes) -> Result<Self, MigrationPlanError> {
        let btf = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes).unwrap_or_default();
        let mut plan = Self::default();
        let mut pinned: BTreeMap<String, MapData> = pinned_maps(pin_dir)?.into_iter().collect();
        pinned.remove(LAYOUTS);
        for name in map::PINNED {
            let new = Described::by(object, &btf, name, sizes)?;
            if let Ok(layout) = &new.layout {
                plan.built.insert(name, layout.clone());
            }
            let Some(map) = pinned.remove(name) else {
                plan.appearing.push(name);
                continue;
            };
            plan.consider(name, map, &new, pin_dir, record)?;
        }
        // If anything goes wrong before these maps are removed, the build that made them must find
        // their layouts recorded.
        for map in pinned.values() {
            if let Some((id, layout)) = map.info().ok().and_then(|info| Some((info.id(), record.maps.get(&info.id())?)))
            {
                plan.pinned.insert(id, layout.clone());
            }
        }
        plan.unknown = pinned.into_keys().collect();
        for change in plan.changes.iter_mut().filter(|change| sizes.is_unused(change.name)) {
            (change.way, change.shrinks_to) = (None, None);
        }
        plan.leave_unused(pin_dir)?;
        Ok(plan)
    }

    /// Limits the copy of arrays that get smaller to the entries that still fit; fails if an entry
    /// in use does not. The slots beyond the last ring in use are not copied either: most slots are
    /// unused, and reading them would make the handover longer.
    fn leave_unused(&mut self, pin_dir: &Path) -> Result<(), MigrationPlanError> {
        let is_of_slots = |name| LimitedMap::named(name).is_some_and(|map| map.limit == Limit::RingSlots);
        if self.changes.iter().all(|change| change.shrinks_to.is_none() && !is_of_slots(change.name)) {
            return Ok(());
        }
        let extent = Extent::of(pin_dir, &self.pinned).map_err(|source| MigrationPlanError::Extent { source })?;
        for change in &mut self.changes {
            let MapChange { name, way: Some(way), shrinks_to, .. } = change else { continue };
            let Some(map) = LimitedMap::named(name) else { continue };
            let Some(needed) = map.index.and_then(|index| extent.entries(index)) else { continue };
            if let Some(entries) = shrinks_to.filter(|entries| needed > *entries) {
                return Err(MigrationPlanError::TooSmall { map, entries, needed });
            }
            way.kept = if map.limit == Limit::RingSlots { Some(needed) } else { *shrinks_to };
        }
        Ok(())
    }

    /// Decides what happens to a pinned map that must become as `new` says.
    fn consider(
        &mut self,
        name: &'static str,
        map: MapData,
        new: &Described,
        pin_dir: &Path,
        record: &Record,
    ) -> Result<(), MigrationPlanError> {
        let (id, is) = Described::pinned(name, &map, pin_dir, record)?;
        if let Ok(layout) = &is.layout {
            self.pinned.insert(id, layout.clone());
        }
        let mut meant_otherwise = false;
        if let (map::SETTINGS, Ok(was), Ok(will_be)) = (name, &is.layout, &new.layout) {
            meant_otherwise = check_meaning(map, &was.value)?;
            self.settings = Some((was.value.clone(), will_be.value.clone()));
        }
        self.changes.extend(change(name, &is, new, meant_otherwise)?);
        Ok(())
    }

    /// Whether the pinned maps can all be used as they are, with none left over.
    pub fn changes_nothing(&self) -> bool {
        self.changes.is_empty() && self.unknown.is_empty()
    }

    /// The maps that are pinned as `NAME-new` until every hook runs the new programs.
    pub fn new_maps(&self) -> impl Iterator<Item = &'static str> {
        self.changes.iter().map(|change| change.name).chain(self.appearing.iter().copied())
    }
}

/// Whether the maps were written by a build of another layout that this build still understands.
fn check_meaning(settings: MapData, value: &Type) -> Result<bool, MigrationPlanError> {
    let settings = PinnedSettings::new(settings, value);
    let from = settings.number("layout").map_err(|source| MigrationPlanError::Settings { source })?.unwrap_or(0) as u32;
    if meaning::is_understood(from) {
        Ok(![0, LAYOUT].contains(&from))
    } else {
        Err(MigrationPlanError::Meaning { from })
    }
}

/// A map as it is pinned, or as this build defines it.
struct Described {
    map_type: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    layout: Result<Layout, BtfError>,
}

impl Described {
    fn by(object: &Object, btf: &[u8], name: &'static str, sizes: &MapSizes) -> Result<Self, MigrationPlanError> {
        let failed = |source| MigrationPlanError::Object { map: name, source };
        let map =
            object.maps.get(name).ok_or_else(|| failed(BtfError::Unknown("the object has no such map".to_owned())))?;
        let layout = match map {
            aya_obj::Map::Btf(btf_map) => {
                let (key, value) = (btf_map.def.btf_key_type_id, btf_map.def.btf_value_type_id);
                layout(&MapTypes { btf: btf.to_vec(), key, value })
            }
            aya_obj::Map::Legacy(_) => Err(BtfError::Missing),
        };
        Ok(Self {
            map_type: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: sizes.get(name).unwrap_or_else(|| map.max_entries()),
            flags: map.map_flags(),
            layout,
        })
    }

    /// Describes a pinned map; also returns its id.
    fn pinned(
        name: &'static str,
        map: &MapData,
        pin_dir: &Path,
        record: &Record,
    ) -> Result<(u32, Self), MigrationPlanError> {
        let unreadable = |source| LeftoverError::Pinned { path: pin_dir.join(name), source };
        let info = map.info().map_err(unreadable)?;
        let layout = match record.maps.get(&info.id()) {
            Some(layout) => Ok(layout.clone()),
            // A ring buffer has no entries.
            None if matches!(info.map_type(), Ok(MapType::RingBuf)) => Err(BtfError::Missing),
            None => match map_types(map) {
                Ok(types) => types.as_ref().map_or(Err(BtfError::Missing), layout),
                Err(source) => {
                    return Err(MigrationPlanError::Unrecorded {
                        map: name.to_owned(),
                        record: pin_dir.join(LAYOUTS),
                        source,
                    });
                }
            },
        };
        let described = Self {
            map_type: info.map_type().map_or(u32::MAX, |map_type| map_type as u32),
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
            layout,
        };
        Ok((info.id(), described))
    }

    fn shape(&self) -> String {
        let Self { map_type, key, value, entries, flags, .. } = self;
        format!("type {map_type}, key {key}, value {value}, entries {entries}, flags {flags:#x}")
    }

    fn is(&self, map_type: MapType) -> bool {
        self.map_type == map_type as u32
    }

    fn is_per_cpu(&self) -> bool {
        self.is(MapType::PerCpuArray) || self.is(MapType::PerCpuHash) || self.is(MapType::LruPerCpuHash)
    }
}

fn layout(types: &MapTypes) -> Result<Layout, BtfError> {
    let btf = Btf::parse(&types.btf)?;
    Ok(Layout { key: btf.layout(types.key)?, value: btf.layout(types.value)? })
}

/// How `old` becomes `new`; `None` if the map is taken over as it is, which a map that is
/// `meant_otherwise` (its entries have another meaning) never is.
fn change(
    name: &'static str,
    old: &Described,
    new: &Described,
    meant_otherwise: bool,
) -> Result<Option<MapChange>, MigrationPlanError> {
    if old.is(MapType::RingBuf) && new.is(MapType::RingBuf) {
        let what = || format!("{} bytes -> {}", old.entries, new.entries);
        let content = Content::Remembered;
        return Ok((old.entries != new.entries).then(|| MapChange {
            name,
            way: None,
            content,
            shrinks_to: None,
            what: what(),
        }));
    }
    let impossible = |why: String| MigrationPlanError::Impossible { map: name, why };
    if !is_convertible(old, new) {
        return Err(impossible(format!("it is of another kind ({}; this build has {})", old.shape(), new.shape())));
    }
    let was = old.layout.as_ref().map_err(|error| impossible(format!("{error} ({})", old.shape())))?;
    let is = new.layout.as_ref().map_err(|source| MigrationPlanError::Object { map: name, source: source.clone() })?;
    if old.shape() == new.shape() && was == is && !meant_otherwise {
        return Ok(None);
    }
    let content = Content::of(name, new);
    if name == map::ADDRESS_FILTER && old.entries != new.entries {
        // The place of an address depends on the size. An empty filter stops no packet, and the
        // agent fills it again.
        let what = format!("{} words -> {}", old.entries, new.entries);
        return Ok(Some(MapChange { name, way: None, content, shrinks_to: None, what }));
    }
    let impossible = |part: &str, error: Impossible| impossible(format!("{part}: {error}"));
    let way = Way {
        key: Conversion::new(&was.key, &is.key, EntryPart::Key).map_err(|error| impossible("its key", error))?,
        value: Conversion::new(&was.value, &is.value, EntryPart::Value)
            .map_err(|error| impossible("its value", error))?,
        merge: match content {
            Content::Counted => Merge::counters(&is.value),
            _ if name == map::RINGS => Merge::words(&is.value),
            Content::Told | Content::Remembered => Merge::entries(&is.value),
        },
        kept: None,
    };
    let parts: [(&Type, &Type); 2] = [(&was.key, &is.key), (&was.value, &is.value)];
    let mut what: Vec<String> =
        parts.iter().filter(|(was, is)| was != is).map(|(was, is)| differences(was, is)).collect();
    if old.entries != new.entries {
        what.push(format!("room for {} -> {}", old.entries, new.entries));
    }
    if (old.map_type, old.flags) != (new.map_type, new.flags) {
        what.push("another map type or other flags".to_owned());
    }
    if meant_otherwise {
        what.push(format!("layout {LAYOUT}"));
    }
    let shrinks_to = (new.entries < old.entries).then_some(new.entries);
    Ok(Some(MapChange { name, way: Some(way), content, shrinks_to, what: what.join(", ") }))
}

/// Arrays stay arrays and per-CPU maps stay per-CPU; a hash may become an LRU or the reverse.
fn is_convertible(old: &Described, new: &Described) -> bool {
    let is_hash = |map: &Described| map.is(MapType::Hash) || map.is(MapType::LruHash);
    let is_per_cpu_hash = |map: &Described| map.is(MapType::PerCpuHash) || map.is(MapType::LruPerCpuHash);
    is_hash(old) && is_hash(new)
        || is_per_cpu_hash(old) && is_per_cpu_hash(new)
        || old.map_type == new.map_type
            && [MapType::Array, MapType::PerCpuArray, MapType::LpmTrie].iter().any(|map_type| old.is(*map_type))
}
