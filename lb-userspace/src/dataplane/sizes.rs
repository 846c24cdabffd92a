//! How many entries each map gets when the agent starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{HashMap, MapData};
use lb_common::{
    flow::{Addr, V4Addr, V6Addr},
    limits::map,
    service::{MODE_DSR_IPIP, MODE_DSR_L2, MODE_NAT, Service, VipKey},
};

use super::maps::{MapsError, open};
use crate::model::{FlowTables, FlowTablesInUse, NodeSettings};

/// Entries of a table for half-open or seen flows that no service uses. Services added at run time
/// that do use the table must manage with this size until the agent restarts.
pub const UNUSED_TABLE: u32 = 1 << 13;
/// Words of `SLOT_TIMES` if no service uses them: 1,024 slots.
const UNUSED_TIMES: u32 = 1 << 9;

/// The number of entries of maps, by name, where it is not the build's default.
#[derive(Clone, Default, Debug)]
pub struct MapSizes {
    entries: BTreeMap<&'static str, u32>,
    unused: BTreeSet<&'static str>,
}

impl MapSizes {
    /// The sizes for these settings, if the services use the flow tables `in_use`.
    pub fn of(node: &NodeSettings, in_use: FlowTablesInUse) -> Self {
        let FlowTables { established, half_open, seen } = node.flow_tables;
        let of_dsr = [
            (map::ESTABLISHED_V4, established),
            (map::ESTABLISHED_V6, established),
            (map::HALF_OPEN_V4, half_open),
            (map::HALF_OPEN_V6, half_open),
            (map::SEEN_V4, seen),
            (map::SEEN_V6, seen),
        ];
        let mut sizes: Self = of_dsr.into_iter().chain(node.limits.map_sizes()).collect();
        // The tables of established flows keep their size: an entry takes memory only once it is
        // made.
        if !in_use.dsr {
            sizes.leave_unused(map::SLOT_TIMES, UNUSED_TIMES);
            for name in [map::HALF_OPEN_V4, map::HALF_OPEN_V6, map::SEEN_V4, map::SEEN_V6] {
                sizes.leave_unused(name, UNUSED_TABLE);
            }
        }
        if !in_use.nat {
            sizes.leave_unused(map::NAT_HALF_OPEN_V4, UNUSED_TABLE);
            sizes.leave_unused(map::NAT_HALF_OPEN_V6, UNUSED_TABLE);
        }
        sizes
    }

    /// Limits a map whose contents no service needs to `entries`.
    fn leave_unused(&mut self, name: &'static str, entries: u32) {
        let size = self.entries.entry(name).or_insert(entries);
        *size = (*size).min(entries);
        self.unused.insert(name);
    }

    pub fn get(&self, name: &str) -> Option<u32> {
        self.entries.get(name).copied()
    }

    /// Whether no service needs the contents of the map.
    pub fn is_unused(&self, name: &str) -> bool {
        self.unused.contains(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.entries.iter().map(|(name, entries)| (*name, *entries))
    }
}

impl FromIterator<(&'static str, u32)> for MapSizes {
    fn from_iter<I: IntoIterator<Item = (&'static str, u32)>>(entries: I) -> Self {
        Self { entries: entries.into_iter().collect(), unused: BTreeSet::new() }
    }
}

/// Which flow tables the services use that are pinned in `pin_dir`; all, if the pinned services
/// cannot be read because another build's layout differs.
pub fn pinned_in_use(pin_dir: &Path) -> FlowTablesInUse {
    let of_family = |name, read: fn(&Path, &'static str) -> Result<FlowTablesInUse, MapsError>| {
        if pin_dir.join(name).exists() {
            read(pin_dir, name).unwrap_or(FlowTablesInUse::ALL)
        } else {
            Default::default()
        }
    };
    of_family(map::SERVICES_V4, read::<V4Addr>) | of_family(map::SERVICES_V6, read::<V6Addr>)
}

fn read<A: Addr>(pin_dir: &Path, name: &'static str) -> Result<FlowTablesInUse, MapsError>
where
    VipKey<A>: aya::Pod,
{
    let services: HashMap<MapData, VipKey<A>, Service> = open(pin_dir, name)?;
    let mut in_use = FlowTablesInUse::default();
    for entry in services.iter() {
        let (_, service) = entry.map_err(|source| MapsError::Read { map: name, source })?;
        in_use = in_use | of_mode(service.mode);
    }
    Ok(in_use)
}

const fn of_mode(mode: u8) -> FlowTablesInUse {
    match mode {
        MODE_NAT => FlowTablesInUse { nat: true, dsr: false },
        MODE_DSR_L2 | MODE_DSR_IPIP => FlowTablesInUse { nat: false, dsr: true },
        _ => FlowTablesInUse::ALL,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sizes(text: &str) -> MapSizes {
        let config = crate::config::parse(&format!("version: 1\ninterfaces: [eth0]\n{text}"), Path::new("weir.yaml"));
        let config = config.unwrap();
        MapSizes::of(&config.node, FlowTablesInUse::of(&config.services))
    }

    fn service(mode: &str) -> String {
        let backends = "[{ address: 10.0.0.2, port: 80 }]";
        format!(
            "services: [{{ name: a, vips: [192.0.2.1], port: 80, mode: {mode}, ringSize: 101, backends: {backends} \
            }}]\n"
        )
    }

    #[test]
    fn tables_are_as_large_as_the_modes_that_services_use_need() {
        let of = |text: &str| {
            let sizes = sizes(text);
            [map::SEEN_V6, map::HALF_OPEN_V4, map::SLOT_TIMES, map::NAT_HALF_OPEN_V4, map::ESTABLISHED_V4]
                .map(|name| (sizes.get(name), sizes.is_unused(name)))
        };
        let (full, times) = ((Some(1 << 17), false), (Some(1 << 21), false));
        let unused = (Some(UNUSED_TABLE), true);
        assert_eq!(of(&service("nat")), [unused, unused, (Some(UNUSED_TIMES), true), (None, false), full]);
        assert_eq!(of(&service("dsr-l2")), [full, full, times, unused, full]);
        assert_eq!(of("services: []\n"), [unused, unused, (Some(UNUSED_TIMES), true), unused, full]);
    }

    #[test]
    fn configured_sizes_hold_for_tables_in_use_and_are_never_exceeded() {
        let small = "flowTables: { halfOpen: 2048, seen: 2048, established: 4096 }\nlimits: { ringSlots: 1024 }\n";
        let sizes = sizes(&format!("{small}{}", service("nat")));
        let of = |name| sizes.get(name).unwrap();
        assert_eq!((of(map::HALF_OPEN_V6), of(map::SEEN_V4), of(map::ESTABLISHED_V4)), (2048, 2048, 4096));
        assert_eq!((of(map::RINGS), of(map::SLOT_TIMES)), (1024, 512));
    }
}
