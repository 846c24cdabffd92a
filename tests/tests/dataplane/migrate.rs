//! What another build has pinned: maps of another layout or size, other maps, and what an
//! interrupted migration left.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, MapType, PerCpuArray, PerCpuValues};
use lb_common::{
    flow::{Flow, V6Addr},
    limits::map,
    nat::NatEntry,
    service::{Service, Stats, VipKey},
    settings::{LAYOUT, Settings},
};
use lb_userspace::{
    dataplane::{
        cleanup::cleanup,
        data_path::DataPath,
        load::{BpfLog, LoadError},
        migrate::record::{LAYOUTS, Record},
        sizes::MapSizes,
    },
    model::XdpMode,
    node::interfaces::{Netlink, matching},
};

use crate::{
    by_hand::{ByHand, Entry},
    sandbox::{Sandbox, sandbox},
};

fn open(sandbox: &Sandbox) -> DataPath {
    DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap()
}

fn open_sized(sandbox: &Sandbox, sizes: &[(&'static str, u32)]) -> Result<DataPath, LoadError> {
    DataPath::open_sized(&sandbox.pin_dir(), BpfLog::Off, &sizes.iter().copied().collect::<MapSizes>())
}

fn refused(opened: Result<DataPath, LoadError>) -> String {
    opened.err().unwrap().to_string()
}

fn pinned<M: TryFrom<Map, Error = aya::maps::MapError>>(sandbox: &Sandbox, name: &str) -> M {
    Map::from_map_data(MapData::from_pin(sandbox.pin_dir().join(name)).unwrap()).unwrap().try_into().unwrap()
}

fn id(path: &Path) -> u32 {
    MapInfo::from_pin(path).unwrap().id()
}

/// The pin directory and a place in it.
fn place(sandbox: &Sandbox, name: &str) -> PathBuf {
    fs::create_dir_all(sandbox.pin_dir()).unwrap();
    sandbox.pin_dir().join(name)
}

fn pins(sandbox: &Sandbox) -> BTreeSet<String> {
    let entries = fs::read_dir(sandbox.pin_dir()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Attaches to `one`; the id of the XDP program there.
async fn attach(data_path: &mut DataPath, netlink: &Netlink) -> u32 {
    let interfaces = netlink.interfaces().await.unwrap();
    let hooks = data_path.sync(&matching(&interfaces, &["one".to_owned()]).0, XdpMode::Auto);
    assert_eq!(hooks[0].problem, "");
    program(netlink).await
}

async fn program(netlink: &Netlink) -> u32 {
    let interfaces = netlink.interfaces().await.unwrap();
    matching(&interfaces, &["one".to_owned()]).0[0].xdp.unwrap().program
}

/// `SERVICES_V4` as another build might have it: other orders and widths, a member that is gone
/// since, and none of those that came.
const SERVICES: ByHand<'_> = ByHand {
    name: map::SERVICES_V4,
    map_type: MapType::Hash,
    key: &[("port_be", 2), ("protocol", 1), ("reserved_first", 1), ("vip", 4)],
    value: &[("draining_since_ns", 8), ("gone", 8), ("mode", 4), ("ring_len", 2), ("ring_offset", 2)],
    entries: 99,
    has_btf: true,
};
const ONE: Entry<'_> = (&[0x5000, 6, 0, 0x0a02_00c0], &[77, 1, 2, 101, 9]);
const OTHER: Entry<'_> = (&[0xbb01, 6, 0, 0x0b02_00c0], &[0, 1, 1, 103, 8]);

#[test]
fn map_of_another_layout_is_converted_by_the_names_of_its_members() {
    sandbox(async |sandbox| {
        SERVICES.pin(&place(sandbox, map::SERVICES_V4), &[ONE, OTHER]);
        let _data_path = open(sandbox);
        let services: HashMap<MapData, VipKey<u32>, Service> = pinned(sandbox, map::SERVICES_V4);
        let found = |vip, port_be| services.get(&VipKey::tcp(vip, port_be), 0).unwrap();
        let one = found(0x0a02_00c0, 0x5000);
        assert_eq!((one.draining_since_ns, one.mode, one.ring_len, one.ring_offset), (77, 2, 101, 9));
        assert_eq!((one.id, one.stats, one.flags), (0, 0, 0));
        assert_eq!(found(0x0b02_00c0, 0xbb01).ring_len, 103);
        assert_eq!(services.keys().count(), 2);
        let others = ["LAYOUTS", "program-weir_egress", "program-weir_ingress", "program-weir_xdp"];
        assert_eq!(pins(sandbox), map::PINNED.into_iter().chain(others).map(str::to_owned).collect());
    });
}

#[test]
fn map_that_cannot_become_ours_is_refused_by_map_and_field_and_left_as_it_is() {
    sandbox(async |sandbox| {
        let backends = ByHand { name: map::BACKENDS, map_type: MapType::Array, key: &[("", 4)], ..SERVICES };
        let cases: [(ByHand<'_>, Entry<'_>, &[&str]); 6] = [
            (ByHand { has_btf: false, ..SERVICES }, ONE, &["no BTF"]),
            (ByHand { key: &[("vip", 4), ("colour", 4)], ..SERVICES }, (&[1, 2], ONE.1), &["key", "colour"]),
            (
                ByHand { value: &[("mode", 8), ("flags", 2), ("id", 2)], ..SERVICES },
                (ONE.0, &[256, 0, 0]),
                &["mode", "0x100"],
            ),
            (ByHand { map_type: MapType::Array, key: &[("", 4)], ..SERVICES }, (&[5], ONE.1), &["another kind"]),
            (ByHand { value: &[("port_be", 4), ("flags", 4)], ..backends }, (&[3], &[80, 1]), &["port_be"]),
            (
                ByHand { value: &[("flags", 4), ("way", 4)], entries: 1 << 20, ..backends },
                (&[1 << 19], &[1, 1]),
                &["16384"],
            ),
        ];
        for (map, entry, words) in cases {
            let pin = place(sandbox, map.name);
            map.pin(&pin, &[entry]);
            let before = id(&pin);
            let said = refused(open_sized(sandbox, &[]));
            let expected = [&[map.name, "weir cleanup"], words].concat();
            assert!(expected.iter().all(|word| said.contains(word)), "{said}");
            assert_eq!(id(&pin), before);
            assert!(pins(sandbox).iter().all(|name| !name.contains('-')), "{:?}", pins(sandbox));
            cleanup(&sandbox.pin_dir()).unwrap();
        }
    });
}

/// What the tests put into maps that then get another size.
fn fill(sandbox: &Sandbox) {
    let mut flows: HashMap<MapData, Flow<V6Addr>, NatEntry<V6Addr>> = pinned(sandbox, map::NAT_ESTABLISHED_V6);
    (0..500).for_each(|number| flows.insert(flow(number), entry(number), 0).unwrap());
    let mut stats: PerCpuArray<MapData, Stats> = pinned(sandbox, map::SERVICE_STATS);
    stats.set(7, counters(), 0).unwrap();
    let mut verdicts: PerCpuArray<MapData, u64> = pinned(sandbox, map::VERDICTS);
    let counted = vec![1; aya::util::nr_cpus().unwrap()];
    verdicts.set(7, PerCpuValues::try_from(counted).unwrap(), 0).unwrap();
    let mut settings: Array<MapData, Settings> = pinned(sandbox, map::SETTINGS);
    settings
        .set(0, Settings { flags: Settings::FLAG_KEEP_SOURCE, layout: LAYOUT, ..settings.get(&0, 0).unwrap() }, 0)
        .unwrap();
}

fn expect_filled(sandbox: &Sandbox) {
    let flows: HashMap<MapData, Flow<V6Addr>, NatEntry<V6Addr>> = pinned(sandbox, map::NAT_ESTABLISHED_V6);
    assert_eq!(flows.keys().count(), 500);
    (0..500).for_each(|number| assert_eq!(flows.get(&flow(number), 0).unwrap(), entry(number)));
    let stats: PerCpuArray<MapData, Stats> = pinned(sandbox, map::SERVICE_STATS);
    assert_eq!(*stats.get(&7, 0).unwrap(), *counters());
    let settings: Array<MapData, Settings> = pinned(sandbox, map::SETTINGS);
    let settings = settings.get(&0, 0).unwrap();
    assert_eq!((settings.flags, settings.layout), (Settings::FLAG_KEEP_SOURCE, LAYOUT));
}

fn flow(number: u32) -> Flow<V6Addr> {
    Flow { src: [1, 2, 3, number], dst: [9; 4], src_port_be: number as u16, dst_port_be: 80 }
}

fn entry(number: u32) -> NatEntry<V6Addr> {
    NatEntry {
        to: flow(number).reversed(),
        backend: 3,
        generation: 2,
        stats: 7,
        flags: number,
        sequence: 11,
        timestamp: 12,
        reserved: 0,
        last_seen_ns: 13,
    }
}

fn counters() -> PerCpuValues<Stats> {
    let cpus = aya::util::nr_cpus().unwrap() as u64;
    let stats = (0..cpus).map(|cpu| Stats { packets: 100 + cpu, refused: cpu, ..Stats::default() });
    PerCpuValues::try_from(stats.collect::<Vec<_>>()).unwrap()
}

const SIZES: [(&str, u32); 2] = [(map::NAT_ESTABLISHED_V6, 500), (map::SERVICE_STATS, 64)];

#[test]
fn hooks_go_over_with_the_maps_there_and_back() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut first = open(sandbox);
        let mut program = attach(&mut first, &netlink).await;
        fill(sandbox);
        drop(first);
        let untouched = id(&sandbox.pin_dir().join(map::BACKENDS));
        for sizes in [&SIZES[..], &[]] {
            let before = SIZES.map(|(name, _)| id(&sandbox.pin_dir().join(name)));
            let pinned_before = pins(sandbox);
            let mut data_path = open_sized(sandbox, sizes).unwrap();
            let switched = self::program(&netlink).await;
            assert_ne!(switched, program, "the hook has the new program as soon as the maps are new");
            assert!(SIZES.iter().zip(before).all(|((name, _), before)| id(&sandbox.pin_dir().join(name)) != before));
            assert_eq!(id(&sandbox.pin_dir().join(map::BACKENDS)), untouched);
            assert_eq!(pins(sandbox), pinned_before);
            expect_filled(sandbox);
            for (name, entries) in sizes {
                assert_eq!(MapInfo::from_pin(sandbox.pin_dir().join(name)).unwrap().max_entries(), *entries);
            }
            assert_eq!(attach(&mut data_path, &netlink).await, switched);
            assert_eq!(data_path.lost_hooks(), 0);
            program = switched;
        }
    });
}

#[test]
fn map_that_would_have_too_little_room_is_refused_and_the_hooks_go_on() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut first = open(sandbox);
        let program = attach(&mut first, &netlink).await;
        fill(sandbox);
        drop(first);
        let before = pins(sandbox);
        let said = refused(open_sized(sandbox, &[(map::SERVICE_STATS, 64), (map::NAT_ESTABLISHED_V6, 499)]));
        assert!(said.contains(map::NAT_ESTABLISHED_V6) && said.contains("499"), "{said}");
        let said = refused(open_sized(sandbox, &[(map::VERDICTS, 7)]));
        assert!(said.contains(map::VERDICTS) && said.contains("more than the 7 entries"), "{said}");
        assert_eq!((self::program(&netlink).await, pins(sandbox)), (program, before));
        expect_filled(sandbox);
    });
}

#[test]
fn interrupted_migration_is_thrown_away_before_the_switch_and_finished_after_it() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open(sandbox);
        attach(&mut data_path, &netlink).await;
        fill(sandbox);
        drop(data_path);
        let pin = |name: &str| sandbox.pin_dir().join(name);
        // Before: the new map is there, and no hook uses it.
        let old = id(&pin(map::SERVICES_V4));
        SERVICES.pin(&pin("SERVICES_V4-new"), &[ONE]);
        let expected = pins(sandbox);
        drop(open(sandbox));
        assert_eq!(id(&pin(map::SERVICES_V4)), old);
        assert!(expected.difference(&pins(sandbox)).eq(["SERVICES_V4-new"]));
        // After: the hooks use the new maps, of which one is renamed and the other is not.
        fs::rename(pin(map::NAT_ESTABLISHED_V6), pin("NAT_ESTABLISHED_V6-new")).unwrap();
        let stale = ByHand { name: map::NAT_ESTABLISHED_V6, key: &[("src", 8)], value: &[("to", 8)], ..SERVICES };
        stale.pin(&pin(map::NAT_ESTABLISHED_V6), &[]);
        let (new, program) = (id(&pin("NAT_ESTABLISHED_V6-new")), self::program(&netlink).await);
        drop(open(sandbox));
        assert_eq!(id(&pin(map::NAT_ESTABLISHED_V6)), new);
        assert!(!pin("NAT_ESTABLISHED_V6-new").exists());
        assert_ne!(self::program(&netlink).await, program, "a hook may still have had the program before");
        expect_filled(sandbox);
    });
}

#[test]
fn map_that_this_build_does_not_know_is_removed_and_what_is_not_weirs_stays() {
    sandbox(async |sandbox| {
        let unknown = ByHand { name: "FROM_THE_FUTURE", ..SERVICES };
        unknown.pin(&place(sandbox, "FROM_THE_FUTURE"), &[ONE]);
        unknown.pin(&place(sandbox, "mine"), &[]);
        unknown.pin(&place(sandbox, "OTHERS"), &[]);
        drop(open(sandbox));
        let left = pins(sandbox);
        assert!(!left.contains("FROM_THE_FUTURE") && left.contains("mine") && left.contains("OTHERS"), "{left:?}");
        unknown.pin(&place(sandbox, "FROM_THE_FUTURE"), &[ONE]);
        SERVICES.pin(&place(sandbox, "SERVICES_V4-new"), &[]);
        let done = cleanup(&sandbox.pin_dir()).unwrap().join("\n");
        assert!(done.contains("removed map FROM_THE_FUTURE") && done.contains("removed map SERVICES_V4-new"), "{done}");
        assert_eq!(pins(sandbox), BTreeSet::from(["OTHERS".to_owned(), "mine".to_owned()]));
    });
}

#[test]
fn maps_that_mean_something_else_are_refused() {
    sandbox(async |sandbox| {
        drop(open(sandbox));
        let mut settings: Array<MapData, Settings> = pinned(sandbox, map::SETTINGS);
        settings.set(0, Settings { layout: 99, ..settings.get(&0, 0).unwrap() }, 0).unwrap();
        let said = refused(open_sized(sandbox, &[]));
        assert!(said.contains("layout 99") && said.contains("weir cleanup"), "{said}");
    });
}

#[test]
fn damaged_or_missing_record_of_layouts_is_made_anew_and_a_foreign_map_is_none_of_ours() {
    sandbox(async |sandbox| {
        drop(open(sandbox));
        let path = place(sandbox, LAYOUTS);
        let written = Record::read(&sandbox.pin_dir()).unwrap().unwrap();
        let rings = id(&sandbox.pin_dir().join(map::RINGS));
        assert!(written.maps.contains_key(&rings));
        assert_eq!(written.programs.len(), 3);
        fs::remove_file(&path).unwrap();
        drop(open(sandbox));
        assert_eq!(Record::read(&sandbox.pin_dir()).unwrap().unwrap().maps, written.maps);

        fs::remove_file(&path).unwrap();
        let damaged =
            ByHand { name: LAYOUTS, map_type: MapType::Array, key: &[("", 4)], value: &[("text", 8)], ..SERVICES };
        damaged.pin(&path, &[(&[0], &[7])]);
        let said = Record::read(&sandbox.pin_dir()).err().unwrap().to_string();
        assert!(said.contains(LAYOUTS) && said.contains("damaged"), "{said}");
        drop(open(sandbox));
        assert_eq!(Record::read(&sandbox.pin_dir()).unwrap().unwrap().maps, written.maps);

        // Made by another hand under the same name: its layout is its own, whatever was recorded of
        // the one before.
        fs::remove_file(sandbox.pin_dir().join(map::SERVICES_V4)).unwrap();
        SERVICES.pin(&place(sandbox, map::SERVICES_V4), &[ONE]);
        drop(open(sandbox));
        let services: HashMap<MapData, VipKey<u32>, Service> = pinned(sandbox, map::SERVICES_V4);
        assert_eq!(services.get(&VipKey::tcp(0x0a02_00c0, 0x5000), 0).unwrap().ring_len, 101);
    });
}

#[test]
fn refused_roll_back_leaves_the_record_of_maps_that_only_the_other_build_knows() {
    sandbox(async |sandbox| {
        drop(open(sandbox));
        // As after a start of a newer build: its map is pinned, and recorded.
        ByHand { name: "FROM_THE_FUTURE", ..SERVICES }.pin(&place(sandbox, "FROM_THE_FUTURE"), &[ONE]);
        let future = id(&sandbox.pin_dir().join("FROM_THE_FUTURE"));
        let mut record = Record::read(&sandbox.pin_dir()).unwrap().unwrap();
        let layout = record.maps[&id(&sandbox.pin_dir().join(map::SERVICES_V4))].clone();
        record.maps.insert(future, layout.clone());
        record.write(&sandbox.pin_dir()).unwrap();
        fill(sandbox);
        let said = refused(open_sized(sandbox, &[(map::NAT_ESTABLISHED_V6, 499)]));
        assert!(said.contains(map::NAT_ESTABLISHED_V6), "{said}");
        assert!(pins(sandbox).contains("FROM_THE_FUTURE"));
        let record = Record::read(&sandbox.pin_dir()).unwrap().unwrap();
        assert_eq!(record.maps.get(&future), Some(&layout));
    });
}

#[test]
fn half_made_pins_are_removed_by_the_next_start_and_by_cleanup() {
    sandbox(async |sandbox| {
        let half_made = ["LAYOUTS-new", "program-weir_xdp-new", "filter-ingress-7-new", "clsact-7-new"];
        drop(open(sandbox));
        let expected = pins(sandbox);
        for next in ["a start", "cleanup"] {
            for name in half_made {
                SERVICES.pin(&sandbox.pin_dir().join(name), &[]);
            }
            if next == "cleanup" {
                let done = cleanup(&sandbox.pin_dir()).unwrap().join("\n");
                assert!(!sandbox.pin_dir().exists(), "{done}");
            } else {
                drop(open(sandbox));
                assert_eq!(pins(sandbox), expected);
            }
        }
    });
}
