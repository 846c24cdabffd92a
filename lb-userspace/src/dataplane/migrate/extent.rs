//! How many entries are in use in each pinned array whose indexes the agent assigns. Later entries
//! are left over from backends, rings and VIPs that are gone, and need not fit into a smaller
//! array.

use std::path::Path;

use aya::maps::MapData;
use lb_common::limits::map;

use super::{
    convert::number,
    copy::CopyError,
    layout::{Layouts, Type},
};
use crate::{
    dataplane::raw::bytes::Bytes,
    model::{MAX_RING_SIZE, limits::IndexOf},
};

/// For each kind of index, the first one after all that are in use; `None` if it cannot be read
/// from the layouts of another build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    slots: Option<u32>,
    backends: Option<u32>,
    service_stats: Option<u32>,
}

impl Extent {
    /// Of the maps pinned in `pin_dir`, by their layouts.
    pub fn of(pin_dir: &Path, layouts: &Layouts) -> Result<Self, CopyError> {
        let largest = |names: &[&'static str], members: &[&str], beyond: fn(&[u64], u32) -> u32| {
            let mut largest = Some(0);
            for name in names {
                let one = beyond_entries(pin_dir, name, layouts, members, beyond)?;
                largest = largest.zip(one).map(|(one, other): (u32, u32)| one.max(other));
            }
            Ok::<_, CopyError>(largest)
        };
        let services = [map::SERVICES_V4, map::SERVICES_V6];
        Ok(Self {
            slots: largest(&services, &["ring_offset", "ring_len"], |numbers, _| match numbers {
                [offset, len] if *len <= u64::from(MAX_RING_SIZE) => narrow(offset + len),
                _ => 0,
            })?,
            backends: largest(&[map::BACKENDS], &["family"], |numbers, index| match numbers {
                [0] => 0,
                _ => index.saturating_add(1),
            })?,
            service_stats: largest(&services, &["stats"], |numbers, _| match numbers {
                [stats] => narrow(stats + 1),
                _ => 0,
            })?,
        })
    }

    /// How many entries of an array with this kind of index are in use; `None` if that is not
    /// known.
    pub fn entries(&self, index: IndexOf) -> Option<u32> {
        match index {
            IndexOf::Slot => self.slots,
            IndexOf::PairOfSlots => self.slots.map(|slots| slots.div_ceil(2)),
            IndexOf::Backend => self.backends,
            IndexOf::ServiceStats => self.service_stats,
        }
    }
}

/// Calls `beyond` for each entry of a map, with the `members` of its value and with its key, as
/// numbers; returns the largest result. `None` if the values have no such members.
fn beyond_entries(
    pin_dir: &Path,
    name: &'static str,
    layouts: &Layouts,
    members: &[&str],
    beyond: fn(&[u64], u32) -> u32,
) -> Result<Option<u32>, CopyError> {
    let path = pin_dir.join(name);
    if !path.exists() {
        return Ok(Some(0));
    }
    let pinned = MapData::from_pin(path)?;
    let map = Bytes::of(&pinned)?;
    let Some(Type::Struct { members: all, .. }) = layouts.get(&map.info.id()).map(|layout| &layout.value) else {
        return Ok(None);
    };
    let member = |name: &&str| {
        let member = all.iter().find(|member| member.name == **name)?;
        matches!(member.ty, Type::Int { size: 1..=8, .. }).then(|| member.offset..member.offset + member.ty.size())
    };
    let Some(places) = members.iter().map(member).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let mut largest = 0;
    let mut numbers = Vec::new();
    map.scan(|key, value| {
        numbers.clear();
        numbers.extend(places.iter().map(|place| value.get(place.clone()).map_or(0, number)));
        let index = key.try_into().map_or(0, u32::from_ne_bytes);
        largest = largest.max(beyond(&numbers, index));
    })?;
    Ok(Some(largest))
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
