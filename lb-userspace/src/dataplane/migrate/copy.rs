//! Moves one map to its new layout: a full copy, updates of it up to the switch, and a last update
//! with the old program's writes until then.

mod converter;
mod copied;

use std::io;

use aya::maps::{MapData, MapError};

pub use self::converter::Way;
use self::{
    converter::Converter,
    copied::{Copied, Found},
};
use super::convert::Cut;
use crate::{
    dataplane::raw::bytes::{Bytes, Put},
    model::limits::{Limit, LimitedMap},
};

/// The old map, the new map, and what was copied last.
pub struct Pair {
    pub name: &'static str,
    pub old: MapData,
    pub new: MapData,
    way: Way,
    copied: Copied,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Cut(#[from] Cut),
    #[error("it holds more than the {max_entries} entries that it would have room for{}", raise(.limit))]
    TooSmall { max_entries: u32, limit: Option<Limit> },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

/// The result of [`Pair::finish`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Brought {
    /// Entries that the old program had written or removed since the last copy, and that were
    /// brought over.
    pub entries: usize,
    /// Entries that were not brought over, because a value does not fit into the new layout.
    pub lost: usize,
}

/// The number of entries written by one system call.
const BATCH: usize = 4096;

impl Pair {
    pub fn new(name: &'static str, old: MapData, new: MapData, way: Way) -> Result<Self, CopyError> {
        let copied = Copied::of(&Bytes::of(&old)?)?;
        Ok(Self { name, old, new, way, copied })
    }

    pub fn entries(&self) -> usize {
        self.copied.len()
    }

    /// Copies everything; no one else writes the new map yet.
    pub fn copy(&mut self) -> Result<(), CopyError> {
        let Self { name, old, new, way, copied } = self;
        let (old, new) = (Bytes::of(old)?, Bytes::of(new)?);
        let mut converter = Converter::new(way, &old, &new);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        each(&old, way, |key, value| {
            if copied.find(key, value) == Found::Nothing {
                return Ok(());
            }
            copied.insert(key, value);
            check_room(name, copied, key, &new)?;
            let (new_key, new_value) = converter.entry(key, value)?;
            keys.extend_from_slice(new_key);
            values.extend_from_slice(new_value);
            if keys.len() == BATCH * new.key {
                new.put_all(&keys, &values)?;
                keys.clear();
                values.clear();
            }
            Ok(())
        })?;
        Ok(new.put_all(&keys, &values)?)
    }

    /// Brings the new map, which no one else writes yet, up to date with the old one.
    pub fn catch_up(&mut self) -> Result<(), CopyError> {
        let Self { name, old, new, way, copied } = self;
        let (old, new) = (Bytes::of(old)?, Bytes::of(new)?);
        let mut converter = Converter::new(way, &old, &new);
        copied.look_again();
        each(&old, way, |key, value| {
            match copied.find(key, value) {
                Found::Nothing | Found::Same => return Ok(()),
                Found::Changed(_) | Found::Appeared => copied.insert(key, value),
            }
            check_room(name, copied, key, &new)?;
            let (key, value) = converter.entry(key, value)?;
            new.put(key, value, Put::Any)?;
            Ok(())
        })?;
        for (key, _) in copied.take_gone(&old)? {
            new.remove(converter.key(&key)?)?;
        }
        Ok(())
    }

    /// For when the new program runs and the old one no longer does: brings over the old program's
    /// writes since the last copy, and keeps the new program's writes.
    pub fn finish(&mut self) -> Result<Brought, CopyError> {
        let Self { old, new, way, copied, .. } = self;
        let (old, new) = (Bytes::of(old)?, Bytes::of(new)?);
        let mut converter = Converter::new(way, &old, &new);
        let (mut base, mut now) = (vec![0; new.value], vec![0; new.value]);
        let mut brought = Brought::default();
        let mut bring = |copied: &mut Copied, key: &[u8], value: &[u8]| -> Result<bool, CopyError> {
            let before = match copied.find(key, value) {
                Found::Nothing | Found::Same => return Ok(false),
                Found::Changed(before) => before,
                Found::Appeared => {
                    let (key, value) = converter.entry(key, value)?;
                    return Ok(new.put(key, value, Put::New)?);
                }
            };
            base.copy_from_slice(converter.entry(key, before)?.1);
            let (key, value) = converter.entry(key, value)?;
            // An entry that the new program has removed meanwhile stays removed.
            if !new.find(key, &mut now)? {
                return Ok(false);
            }
            way.merge.apply_each(&base, value, &mut now, new.each);
            Ok(new.put(key, &now, Put::Existing)?)
        };
        copied.look_again();
        each(&old, way, |key, value| brought.add(bring(copied, key, value)))?;
        for (key, before) in copied.take_gone(&old)? {
            brought.add(remove_unchanged(&mut Converter::new(way, &old, &new), &new, &key, &before))?;
        }
        Ok(brought)
    }
}

/// Removes an entry that the old program has removed, unless the new program has written it since.
fn remove_unchanged(
    converter: &mut Converter<'_>,
    new: &Bytes<'_>,
    key: &[u8],
    before: &[u8],
) -> Result<bool, CopyError> {
    let (key, base) = converter.entry(key, before)?;
    let mut now = vec![0; new.value];
    Ok(new.find(key, &mut now)? && now == base && new.remove(key)?)
}

impl Brought {
    fn add(&mut self, done: Result<bool, CopyError>) -> Result<(), CopyError> {
        match done {
            Ok(done) => self.entries += usize::from(done),
            Err(CopyError::Cut(_)) => self.lost += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn check_room(name: &str, copied: &Copied, key: &[u8], new: &Bytes<'_>) -> Result<(), CopyError> {
    let max_entries = new.info.max_entries();
    let limit = LimitedMap::named(name).map(|map| map.limit);
    if copied.fits(key, max_entries) { Ok(()) } else { Err(CopyError::TooSmall { max_entries, limit }) }
}

fn raise(limit: &Option<Limit>) -> String {
    limit.map_or_else(String::new, |limit| format!(" ({} in the configuration)", limit.key()))
}

/// Calls `visit` for each entry that is not left behind, until `visit` fails.
fn each(
    map: &Bytes<'_>,
    way: &Way,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut outcome = Ok(());
    map.scan_first(way.kept.unwrap_or(u32::MAX), |key, value| {
        if outcome.is_ok() && !way.leaves(key) {
            outcome = visit(key, value);
        }
    })?;
    outcome
}
