//! Reads and writes the few members of `SETTINGS` that a migration touches, at the offsets of the
//! build that made the map.

use aya::maps::MapData;

use super::{
    convert::{number, set_number},
    copy::CopyError,
    layout::Type,
};
use crate::dataplane::raw::bytes::{Bytes, Put};

pub struct PinnedSettings {
    map: MapData,
    value: Type,
}

impl PinnedSettings {
    pub fn new(map: MapData, value: &Type) -> Self {
        Self { map, value: value.clone() }
    }

    /// The value of the member of this name; `None` if there is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, CopyError> {
        let mut found = None;
        self.change(name, |word| {
            found = Some(word);
            word
        })?;
        Ok(found)
    }

    /// Changes the member of this name, if there is one.
    pub fn change(&self, name: &str, change: impl FnOnce(u64) -> u64) -> Result<(), CopyError> {
        let map = Bytes::of(&self.map)?;
        let Type::Struct { members, .. } = &self.value else { return Ok(()) };
        let Some(member) = members.iter().find(|member| member.name == name && member.ty.size() <= 8) else {
            return Ok(());
        };
        let (key, mut value) = (vec![0; map.key], vec![0; map.value]);
        map.find(&key, &mut value)?;
        let bytes = &mut value[member.offset..member.offset + member.ty.size()];
        let before = number(bytes);
        let after = change(before);
        if after != before && set_number(bytes, after) {
            map.put(&key, &value, Put::Any)?;
        }
        Ok(())
    }
}
