//! Maps of other sizes at a start: what they hold goes over, into larger ones and back.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuValues};
use lb_common::{
    backend::Backend,
    exception::Exception,
    filter,
    flow::{Flow, V6Addr, v4_addr},
    limits::map,
    service::{MODE_DSR_L2, Service, Stats},
    slot::Slot,
};
use lb_userspace::{
    dataplane::{
        data_path::DataPath,
        image::{Image, Write},
        load::{BpfLog, LoadError},
        maps::Maps,
        rings::Rings,
        sizes::{MapSizes, UNUSED_TABLE, pinned_in_use},
    },
    model::{FlowTablesInUse, Limits, XdpMode},
    node::interfaces::{Netlink, matching},
};

use crate::sandbox::{Sandbox, sandbox};

const RAISED: Limits = Limits { backends: 1 << 16, ring_slots: 1 << 24, services: 1 << 16, addresses: 1 << 18 };
/// Larger than [`LOWERED`], and quicker to make than [`RAISED`].
const LARGER: Limits = Limits { backends: 4096, ring_slots: 1 << 16, services: 4096, addresses: 4096 };
const LOWERED: Limits = Limits { backends: 1024, ring_slots: 8192, services: 1024, addresses: 1024 };

fn start(sandbox: &Sandbox, limits: Limits) -> Result<DataPath, LoadError> {
    DataPath::open_sized(&sandbox.pin_dir(), BpfLog::Off, &limits.map_sizes().collect())
}

fn refused(started: Result<DataPath, LoadError>) -> String {
    started.err().unwrap().to_string()
}

fn max_entries(sandbox: &Sandbox, name: &str) -> u32 {
    MapInfo::from_pin(sandbox.pin_dir().join(name)).unwrap().max_entries()
}

fn expect_sizes(sandbox: &Sandbox, limits: Limits) {
    for (name, entries) in limits.map_sizes().filter(|(name, _)| *name != map::HOPS) {
        assert_eq!(max_entries(sandbox, name), entries, "{name}");
    }
}

fn counters(sandbox: &Sandbox, name: &str) -> PerCpuArray<MapData, Stats> {
    let pin = MapData::from_pin(sandbox.pin_dir().join(name)).unwrap();
    PerCpuArray::try_from(Map::PerCpuArray(pin)).unwrap()
}

fn counted(packets: u64) -> PerCpuValues<Stats> {
    let cpus = aya::util::nr_cpus().unwrap() as u64;
    let stats = (0..cpus).map(|cpu| Stats { packets: packets + cpu, ..Stats::default() });
    PerCpuValues::try_from(stats.collect::<Vec<_>>()).unwrap()
}

fn vip(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 80))
}

/// A service whose ring is the range from `offset` on, whose only backend has this index, and whose
/// counters this one.
fn serve(sandbox: &Sandbox, maps: &mut Maps, number: u8, (offset, index, stats): (u32, u32, u32)) {
    let slots: Vec<Slot> = (0..101)
        .map(|at| if at % 7 == 0 { Slot::new(index, 1, Slot::TRACKED) } else { Slot::settled(index) })
        .collect();
    let backend = Backend {
        address: [v4_addr([10, 0, 0, number].into()), 0, 0, 0],
        port_be: 80_u16.to_be(),
        family: 4,
        generation: 3 + u32::from(number),
        service: u32::from(number),
        ..Backend::FREE
    };
    let service = Service {
        ring_offset: offset,
        ring_len: slots.len() as u32,
        id: u32::from(number),
        stats,
        flags: 0,
        mode: MODE_DSR_L2,
        reserved: [0; 3],
        draining_since_ns: 0,
    };
    for write in [
        Write::Backend { index, backend: backend.into() },
        Write::Ring { offset, slots },
        Write::Service { vip: vip(number), service: service.into() },
        Write::Address { address: vip(number).ip(), bits: 1 },
    ] {
        maps.apply(&write).unwrap();
    }
    Rings::open(&sandbox.pin_dir()).unwrap().set_time(offset + 7, 1234);
    counters(sandbox, map::SERVICE_STATS).set(stats, counted(100), 0).unwrap();
    counters(sandbox, map::BACKEND_STATS).set(index, counted(200), 0).unwrap();
}

fn remove(maps: &mut Maps, number: u8, index: u32) {
    let free = Backend { generation: 99, ..Backend::FREE };
    for write in [
        Write::RemoveService { vip: vip(number) },
        Write::RemoveAddress { address: vip(number).ip() },
        Write::Backend { index, backend: free.into() },
    ] {
        maps.apply(&write).unwrap();
    }
}

fn image(sandbox: &Sandbox) -> Image {
    Maps::open(&sandbox.pin_dir()).unwrap().read().unwrap()
}

fn expect_served(sandbox: &Sandbox, before: &Image, (offset, index, stats): (u32, u32, u32)) {
    assert_eq!(image(sandbox), *before);
    assert_eq!(Rings::open(&sandbox.pin_dir()).unwrap().time(offset + 7), 1234);
    assert_eq!(*counters(sandbox, map::SERVICE_STATS).get(&stats, 0).unwrap(), *counted(100));
    assert_eq!(*counters(sandbox, map::BACKEND_STATS).get(&index, 0).unwrap(), *counted(200));
}

/// Whether the filter lets an address of the image through, wherever its bit is by now.
fn lets_through(sandbox: &Sandbox, number: u8) -> bool {
    let pin = MapData::from_pin(sandbox.pin_dir().join(map::ADDRESS_FILTER)).unwrap();
    let filter = Array::<_, u64>::try_from(Map::Array(pin)).unwrap();
    let (word, bit) = filter::place(&v4_addr([192, 0, 2, number].into()), filter::shift(filter.len()));
    filter.get(&word, 0).unwrap() & bit == 0
}

#[test]
fn larger_limits_keep_every_slot_index_and_counter_and_so_does_the_way_back() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let program = async || {
            let interfaces = netlink.interfaces().await.unwrap();
            matching(&interfaces, &["one".to_owned()]).0[0].xdp.unwrap().program
        };
        let mut first = start(sandbox, Limits::default()).unwrap();
        let interfaces = netlink.interfaces().await.unwrap();
        let hooks = first.sync(&matching(&interfaces, &["one".to_owned()]).0, XdpMode::Auto);
        assert_eq!(hooks[0].problem, "");
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        maps.fit_shortcuts(&maps.read().unwrap()).unwrap();
        // The last of each that there is.
        let last = ((1 << 22) - 101, (1 << 14) - 1, (1 << 15) - 1);
        serve(sandbox, &mut maps, 1, last);
        let before = image(sandbox);
        drop((first, maps));
        for limits in [RAISED, Limits::default()] {
            let attached = program().await;
            let _data_path = start(sandbox, limits).unwrap();
            assert_ne!(program().await, attached, "the hook goes over with the maps");
            expect_sizes(sandbox, limits);
            expect_served(sandbox, &before, last);
            assert!(lets_through(sandbox, 1), "an empty filter stops nothing");
            let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
            maps.fit_shortcuts(&before).unwrap();
            assert!(lets_through(sandbox, 1) && !lets_through(sandbox, 2));
        }
    });
}

/// Kernel memory that the pinned maps take, in bytes, by the kernel's own account.
fn kernel_memory(sandbox: &Sandbox) -> u64 {
    let is_map = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
    let names = std::fs::read_dir(sandbox.pin_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let maps = names.filter(|name| is_map(name.to_str().unwrap()));
    maps.map(|name| {
        let map = MapData::from_pin(sandbox.pin_dir().join(&name)).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    })
    .sum()
}

#[test]
fn maps_of_nat_alone_take_less_than_128_mib_with_20_to_spare() {
    sandbox(async |sandbox| {
        let in_use = FlowTablesInUse { nat: true, dsr: false };
        let sizes = MapSizes::of(&crate::doctor::config(Vec::new()).node, in_use);
        let _data_path = DataPath::open_sized(&sandbox.pin_dir(), BpfLog::Off, &sizes).unwrap();
        let more_cpus = (aya::util::nr_cpus().unwrap() as u64).saturating_sub(2);
        let (mib, found) = (1 << 20, kernel_memory(sandbox));
        // For each CPU, the maps that are not pinned take 0.8 MiB more.
        let most = (128 - 20) * mib + more_cpus * 7 * mib / 2 - (more_cpus + 2) * 4 * mib / 5;
        assert!(found <= most, "{found} of {most} bytes");
        assert!(found > 64 * mib, "{found} bytes: not all maps were counted");
    });
}

#[test]
fn tables_that_no_service_uses_are_small_grow_once_one_does_and_shrink_with_what_they_hold() {
    sandbox(async |sandbox| {
        let start = |in_use| {
            let sizes = MapSizes::of(&crate::doctor::config(Vec::new()).node, in_use);
            DataPath::open_sized(&sandbox.pin_dir(), BpfLog::Off, &sizes).unwrap()
        };
        let nat = FlowTablesInUse { nat: true, dsr: false };
        let tables = [map::SEEN_V6, map::NAT_HALF_OPEN_V4, map::SLOT_TIMES];
        let sizes = || tables.map(|name| max_entries(sandbox, name));
        let first = start(nat);
        assert_eq!(sizes(), [UNUSED_TABLE, 1 << 17, 512]);
        // A slot beyond the small map has a time too, until the agent ends.
        let rings = Rings::open(&sandbox.pin_dir()).unwrap();
        for at in [1022, 1023, 1024, 1025] {
            rings.set_time(at, 1000 + at);
        }
        rings.set_time(1023, 7);
        assert_eq!([1021, 1022, 1023, 1024, 1025].map(|at| rings.time(at)), [0, 2022, 7, 2024, 2025]);
        assert_eq!(pinned_in_use(&sandbox.pin_dir()), FlowTablesInUse::default());
        serve(sandbox, &mut Maps::open(&sandbox.pin_dir()).unwrap(), 1, (0, 1, 0));
        assert_eq!(pinned_in_use(&sandbox.pin_dir()), FlowTablesInUse { nat: false, dsr: true });
        drop(first);

        let second = start(FlowTablesInUse::ALL);
        assert_eq!(sizes(), [1 << 17, 1 << 17, 1 << 21]);
        let rings = Rings::open(&sandbox.pin_dir()).unwrap();
        assert_eq!([7, 1023, 1024].map(|at| rings.time(at)), [1234, 0, 0], "what no service uses is left behind");
        let pin = MapData::from_pin(sandbox.pin_dir().join(map::SEEN_V6)).unwrap();
        let mut seen = HashMap::<_, Flow<V6Addr>, Exception>::try_from(Map::LruHashMap(pin)).unwrap();
        let exception =
            Exception { backend: 1, generation: 4, slot: 7, sequence: 0, flags: 0, reserved: 0, last_seen_ns: 1 };
        for number in 0..2 * UNUSED_TABLE {
            let flow = Flow { src: [0, 0, 0, number], dst: [1; 4], src_port_be: 1, dst_port_be: 1 };
            seen.insert(flow, exception, 0).unwrap();
        }
        remove(&mut Maps::open(&sandbox.pin_dir()).unwrap(), 1, 1);
        drop(second);

        let _third = start(nat);
        assert_eq!(sizes(), [UNUSED_TABLE, 1 << 17, 512]);
        let pin = MapData::from_pin(sandbox.pin_dir().join(map::SEEN_V6)).unwrap();
        let seen = HashMap::<_, Flow<V6Addr>, Exception>::try_from(Map::LruHashMap(pin)).unwrap();
        assert_eq!(seen.keys().count(), 0, "its entries were nobody's");
    });
}

#[test]
fn new_limits_can_be_used_to_the_last_entry() {
    sandbox(async |sandbox| {
        let _data_path = start(sandbox, RAISED).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        let last = ((1 << 24) - 101, (1 << 16) - 1, (1 << 17) - 1);
        serve(sandbox, &mut maps, 1, last);
        expect_served(sandbox, &image(sandbox), last);
        let ring = Write::Ring { offset: last.0 + 1, slots: vec![Slot::settled(1); 101] };
        let said = maps.apply(&ring).unwrap_err().to_string();
        assert!(said.contains("ring arena of 16777216 slots"), "{said}");
    });
}

#[test]
fn lower_limits_are_taken_once_what_is_in_use_fits_and_are_refused_by_name_before() {
    sandbox(async |sandbox| {
        let first = start(sandbox, LARGER).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        let low = (1000, 17, 23);
        serve(sandbox, &mut maps, 1, low);
        drop((first, maps));
        for (high, limit, needed) in [
            ((8092, 18, 24), "limits.ringSlots", "8193"),
            ((2000, 1024, 24), "limits.backends", "1025"),
            ((2000, 18, 2048), "limits.services", "1025"),
        ] {
            // An agent of the limits before makes it, and a start with lower ones finds it.
            let before_start = start(sandbox, LARGER).unwrap();
            let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
            serve(sandbox, &mut maps, 2, high);
            let before = image(sandbox);
            drop((before_start, maps));
            let said = refused(start(sandbox, LOWERED));
            assert!(said.contains(&format!("{limit} cannot be lowered")), "{said}");
            assert!(said.contains(&format!("set it to {needed} or more")), "{said}");
            expect_sizes(sandbox, LARGER);
            assert_eq!(image(sandbox), before, "nothing was changed");
            // What is gone leaves slots, counters and a generation behind, which nothing uses.
            remove(&mut Maps::open(&sandbox.pin_dir()).unwrap(), 2, high.1);
            let before = image(sandbox);
            drop(start(sandbox, LOWERED).unwrap_or_else(|error| panic!("{limit}: {error}")));
            expect_sizes(sandbox, LOWERED);
            let kept =
                Image { backends: before.backends.into_iter().filter(|(index, _)| *index < 1024).collect(), ..before };
            expect_served(sandbox, &kept, low);
        }
    });
}

#[test]
fn more_services_or_addresses_than_lower_limits_allow_are_refused_by_name() {
    sandbox(async |sandbox| {
        let first = start(sandbox, Limits::default()).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        serve(sandbox, &mut maps, 1, (0, 1, 0));
        let address = |number: u32| SocketAddr::from((number.to_be_bytes(), 80)).ip();
        for number in 0..1024 {
            maps.apply(&Write::Address { address: address((10 << 24) + number), bits: 1 }).unwrap();
        }
        let service = *maps.read().unwrap().services.get(&vip(1)).unwrap();
        for port in 1000..2024 {
            maps.apply(&Write::Service { vip: SocketAddr::new(vip(1).ip(), port), service: service.into() }).unwrap();
        }
        let before = image(sandbox);
        drop((first, maps));
        for (limits, limit) in [
            (Limits { services: 1024, ..Limits::default() }, "limits.services"),
            (Limits { addresses: 1024, ..Limits::default() }, "limits.addresses"),
        ] {
            let said = refused(start(sandbox, limits));
            assert!(said.contains("more than the 1024 entries") && said.contains(limit), "{said}");
            expect_sizes(sandbox, Limits::default());
            assert_eq!(image(sandbox), before, "nothing was changed");
        }
        let enough = Limits { services: 1025, addresses: 1025, ..Limits::default() };
        drop(start(sandbox, enough).unwrap());
        expect_sizes(sandbox, enough);
        assert_eq!(image(sandbox), before);
    });
}
