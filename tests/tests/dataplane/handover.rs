//! While one program hands over to another both write, each into its own map.

use std::collections::BTreeMap;

use aya::maps::{HashMap, Map, MapData, MapType, PerCpuArray, PerCpuValues};
use lb_userspace::dataplane::migrate::{
    convert::{Conversion, EntryPart},
    copy::{Pair, Way},
    layout::{Member, Type},
    merge::Merge,
};

use crate::{
    by_hand::ByHand,
    sandbox::{Sandbox, sandbox},
};

const OLD: [(&str, usize); 3] = [("flags", 4), ("sequence", 4), ("last_seen_ns", 8)];
const NEW: [(&str, usize); 4] = [("last_seen_ns", 8), ("spare", 8), ("flags", 4), ("sequence", 4)];

/// Flags, sequence number and time of an entry as words, in the old layout and in the new one.
const fn old(flags: u32, sequence: u32, seen: u32) -> [u32; 4] {
    [flags, sequence, seen, 0]
}

const fn new(flags: u32, sequence: u32, seen: u32) -> [u32; 6] {
    [seen, 0, 0, 0, flags, sequence]
}

fn layout(members: &[(&str, usize)]) -> Type {
    let mut offset = 0;
    let place = |(name, size): &(&str, usize)| {
        let member = Member { name: (*name).to_owned(), offset, ty: Type::Int { size: *size, signed: false } };
        offset += size;
        member
    };
    let members: Vec<Member> = members.iter().map(place).collect();
    Type::Struct { size: members.iter().map(|member| member.ty.size()).sum(), members }
}

fn way(key: &Type, merge: impl Fn(&Type) -> Merge) -> Way {
    Way {
        key: Conversion::new(key, key, EntryPart::Key).unwrap(),
        value: Conversion::new(&layout(&OLD), &layout(&NEW), EntryPart::Value).unwrap(),
        merge: merge(&layout(&NEW)),
        kept: None,
    }
}

/// Two maps made by hand, and second handles of them to write with.
fn maps(sandbox: &Sandbox, map_type: MapType, key: &[(&'static str, usize)]) -> [MapData; 4] {
    let by_hand = ByHand { name: "MAP", map_type, key, value: &OLD, entries: 32, has_btf: false };
    let paths = ["old", "new"].map(|name| sandbox.bpffs().join(name));
    by_hand.pin(&paths[0], &[]);
    ByHand { value: &NEW, ..by_hand }.pin(&paths[1], &[]);
    [&paths[0], &paths[1], &paths[0], &paths[1]].map(|path| MapData::from_pin(path).unwrap())
}

#[test]
fn what_either_program_did_to_a_flow_while_they_handed_over_stays_done() {
    sandbox(async |sandbox| {
        let [from, to, old_map, new_map] = maps(sandbox, MapType::Hash, &[("flow", 8)]);
        let mut old_map: HashMap<MapData, u64, [u32; 4]> = Map::from_map_data(old_map).unwrap().try_into().unwrap();
        let mut new_map: HashMap<MapData, u64, [u32; 6]> = Map::from_map_data(new_map).unwrap().try_into().unwrap();
        let key = Type::Int { size: 8, signed: false };
        let mut pair = Pair::new("MAP", from, to, way(&key, Merge::entries)).unwrap();
        let all =
            |map: &HashMap<MapData, u64, [u32; 6]>| map.iter().collect::<Result<BTreeMap<u64, [u32; 6]>, _>>().unwrap();
        (1..=9).for_each(|flow| old_map.insert(flow, old(1, flow as u32, 100), 0).unwrap());
        pair.copy().unwrap();
        assert_eq!(all(&new_map), (1..=9).map(|flow| (flow, new(1, flow as u32, 100))).collect());

        // The old program goes on; the new one has not begun.
        old_map.insert(2, old(3, 2, 150), 0).unwrap();
        old_map.remove(&3).unwrap();
        old_map.insert(10, old(1, 10, 150), 0).unwrap();
        pair.catch_up().unwrap();
        let mut expected: BTreeMap<u64, [u32; 6]> = (1..=10).map(|flow| (flow, new(1, flow as u32, 100))).collect();
        expected.insert(2, new(3, 2, 150));
        expected.remove(&3);
        expected.insert(10, new(1, 10, 150));
        assert_eq!(all(&new_map), expected);

        // Both run.
        let mut by_old = |flow, entry: [u32; 4]| old_map.insert(flow, entry, 0).unwrap();
        by_old(1, old(5, 1, 200));
        by_old(4, old(5, 77, 200));
        by_old(5, old(5, 5, 200));
        by_old(11, old(1, 11, 200));
        by_old(12, old(1, 12, 200));
        let mut by_new = |flow, entry: [u32; 6]| new_map.insert(flow, entry, 0).unwrap();
        by_new(4, new(3, 4, 300));
        by_new(7, new(9, 7, 300));
        by_new(12, new(2, 99, 300));
        by_new(13, new(1, 13, 300));
        new_map.remove(&5).unwrap();
        new_map.remove(&6).unwrap();
        old_map.remove(&7).unwrap();
        old_map.remove(&8).unwrap();
        let brought = pair.finish().unwrap();
        let expected = BTreeMap::from([
            (1, new(5, 1, 200)),
            (2, new(3, 2, 150)),
            // Each set a flag; the sequence number is the old one's, who alone changed it; the time
            // is the later.
            (4, new(7, 77, 300)),
            // 5 and 6 were removed by the new one; 7 by the old one, but the new one has seen it
            // since; 8 by the old one.
            (7, new(9, 7, 300)),
            (9, new(1, 9, 100)),
            (10, new(1, 10, 150)),
            (11, new(1, 11, 200)),
            // A flow that both have seen begin is the new one's.
            (12, new(2, 99, 300)),
            (13, new(1, 13, 300)),
        ]);
        assert_eq!(all(&new_map), expected);
        assert_eq!((brought.entries, brought.lost), (4, 0), "1, 4, 8 and 11");
    });
}

#[test]
fn counters_of_each_cpu_go_on_from_where_the_old_program_left_them() {
    sandbox(async |sandbox| {
        let [from, to, old_map, new_map] = maps(sandbox, MapType::PerCpuArray, &[("", 4)]);
        let mut old_map: PerCpuArray<MapData, [u32; 4]> = Map::from_map_data(old_map).unwrap().try_into().unwrap();
        let mut new_map: PerCpuArray<MapData, [u32; 6]> = Map::from_map_data(new_map).unwrap().try_into().unwrap();
        let key = Type::Int { size: 4, signed: false };
        let mut pair = Pair::new("MAP", from, to, way(&key, Merge::counters)).unwrap();
        let cpus = aya::util::nr_cpus().unwrap() as u32;
        let values = |count: &dyn Fn(u32) -> u32| {
            PerCpuValues::try_from((0..cpus).map(|cpu| old(count(cpu), 0, 5)).collect::<Vec<_>>()).unwrap()
        };
        let new_values = |count: &dyn Fn(u32) -> u32| {
            PerCpuValues::try_from((0..cpus).map(|cpu| new(count(cpu), 0, 5)).collect::<Vec<_>>()).unwrap()
        };
        let read = |map: &PerCpuArray<MapData, [u32; 6]>, index| {
            map.get(&index, 0).unwrap().iter().map(|value| value[4]).collect::<Vec<_>>()
        };
        old_map.set(3, values(&|cpu| 1000 + cpu), 0).unwrap();
        pair.copy().unwrap();
        old_map.set(3, values(&|cpu| 2000 + cpu), 0).unwrap();
        pair.catch_up().unwrap();
        assert_eq!(read(&new_map, 3), (0..cpus).map(|cpu| 2000 + cpu).collect::<Vec<_>>());
        old_map.set(3, values(&|cpu| 2007 + cpu), 0).unwrap();
        old_map.set(4, values(&|cpu| cpu), 0).unwrap();
        new_map.set(3, new_values(&|cpu| 2100 + 2 * cpu), 0).unwrap();
        new_map.set(4, new_values(&|_| 1), 0).unwrap();
        pair.finish().unwrap();
        assert_eq!(read(&new_map, 3), (0..cpus).map(|cpu| 2107 + 2 * cpu).collect::<Vec<_>>());
        assert_eq!(read(&new_map, 4), (0..cpus).map(|cpu| 1 + cpu).collect::<Vec<_>>());
    });
}
