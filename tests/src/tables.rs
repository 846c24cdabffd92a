//! How many flows have an entry, counted in the pinned maps themselves.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    exception::Exception,
    flow::{Flow, V4Addr, V6Addr},
    limits::map,
};

/// By table. A flow that comes or goes meanwhile may be missed.
pub fn exceptions(pin_dir: &Path) -> Result<BTreeMap<&'static str, u64>> {
    let v4 = [map::ESTABLISHED_V4, map::HALF_OPEN_V4, map::SEEN_V4];
    let v6 = [map::ESTABLISHED_V6, map::HALF_OPEN_V6, map::SEEN_V6];
    let v4 = v4.map(|name| Ok((name, count::<Flow<V4Addr>>(pin_dir, name)?)));
    let v6 = v6.map(|name| Ok((name, count::<Flow<V6Addr>>(pin_dir, name)?)));
    v4.into_iter().chain(v6).collect()
}

fn count<K: Pod>(pin_dir: &Path, name: &str) -> Result<u64> {
    let data = MapData::from_pin(pin_dir.join(name)).with_context(|| format!("can't open the pinned map {name}"))?;
    let is_lru = name.starts_with("HALF_OPEN") || name.starts_with("SEEN");
    let map = if is_lru { Map::LruHashMap(data) } else { Map::HashMap(data) };
    let table: HashMap<MapData, K, Exception> =
        map.try_into().with_context(|| format!("{name} is another kind of map"))?;
    let mut entries = 0;
    for key in table.keys() {
        key.with_context(|| format!("can't read {name}"))?;
        entries += 1;
    }
    Ok(entries)
}
