use std::{collections::BTreeSet, path::Path, time::Instant};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
};
use lb_common::{
    backend::Backend,
    flow::{Addr, Flow, v4_addr, v6_addr},
    nat::{NAT_ESTABLISHED, NAT_FIN_BACKEND, NAT_FIN_CLIENT, NAT_FORWARD, NatEntry, NatTimeouts},
    service::Stats,
    verdict::{EVENTS, Reason, verdict_index},
};
use lb_userspace::{
    clock::boottime_ns,
    dataplane::{
        data_path::DataPath,
        image::Write,
        load::BpfLog,
        maps::Maps,
        stats::Counters,
        tables::{
            FlowQuery,
            nat::{FlowCensus, FlowCounts, FlowState, NatTables},
        },
    },
};

use crate::sandbox::{Sandbox, sandbox};

const SECOND: u64 = 1_000_000_000;
const TIMEOUTS: NatTimeouts =
    NatTimeouts { half_open_ns: 30 * SECOND, established_ns: 7200 * SECOND, closing_ns: 60 * SECOND };
const CLOSED: u32 = NAT_ESTABLISHED | NAT_FIN_CLIENT | NAT_FIN_BACKEND;
const NOW: u64 = 1_000_000 * SECOND;

/// The backends of these tests: 1 and 2 serve in their third generation, 3 does not serve.
fn prepare(sandbox: &Sandbox) -> DataPath {
    let data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
    let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
    for (index, flags) in [(1, Backend::FLAG_SERVING), (2, Backend::FLAG_SERVING), (3, 0)] {
        let backend = Backend { family: 4, generation: 3, flags, ..Backend::FREE };
        maps.apply(&Write::Backend { index, backend: backend.into() }).unwrap();
    }
    data_path
}

struct Table<A: Addr>(HashMap<MapData, Flow<A>, NatEntry<A>>)
where
    Flow<A>: Pod,
    NatEntry<A>: Pod;

impl<A: Addr> Table<A>
where
    Flow<A>: Pod,
    NatEntry<A>: Pod,
{
    fn open(pin_dir: &Path, name: &str) -> Self {
        let data = MapData::from_pin(pin_dir.join(name)).unwrap();
        Self(Map::from_map_data(data).unwrap().try_into().unwrap())
    }

    /// Both entries of a flow from `client` to port 80 of `vip`, by way of `source`, to `server`.
    #[expect(clippy::too_many_arguments, reason = "a flow has as many parts")]
    fn insert(
        &mut self,
        client: (A, u16),
        vip: A,
        source: A,
        server: A,
        backend: (u32, u32),
        flags: u32,
        idle: [u64; 2],
    ) {
        let port = client.1.to_be();
        let forward = Flow { src: client.0, dst: vip, src_port_be: port, dst_port_be: 80_u16.to_be() };
        let to = Flow { src: source, dst: server, src_port_be: port, dst_port_be: 8080_u16.to_be() };
        let (backend, generation) = backend;
        let entry = |to, flags, idle: u64| NatEntry {
            to,
            backend,
            generation,
            stats: 0,
            flags,
            sequence: 0,
            timestamp: 0,
            reserved: 0,
            last_seen_ns: NOW - idle * SECOND,
        };
        let [there, back] = idle;
        self.0.insert(forward, entry(to, flags | NAT_FORWARD, there), 0).unwrap();
        self.0.insert(to.reversed(), entry(forward.reversed(), flags, back), 0).unwrap();
    }
}

fn v4(text: &str) -> u32 {
    v4_addr(text.parse().unwrap())
}

fn v6(text: &str) -> [u32; 4] {
    v6_addr(text.parse().unwrap())
}

fn entries(census: &FlowCensus, map: &str) -> u64 {
    census.tables.iter().find(|fill| fill.map == map).unwrap().entries
}

#[test]
fn flows_are_counted_by_state_and_those_that_are_over_are_removed() {
    sandbox(async |sandbox| {
        let _data_path = prepare(sandbox);
        let mut established = Table::<u32>::open(&sandbox.pin_dir(), "NAT_ESTABLISHED_V4");
        let mut half_open = Table::<u32>::open(&sandbox.pin_dir(), "NAT_HALF_OPEN_V4");
        let mut established_v6 = Table::<[u32; 4]>::open(&sandbox.pin_dir(), "NAT_ESTABLISHED_V6");
        let (client, vip, source, server) = (v4("198.51.100.7"), v4("192.0.2.10"), v4("10.0.0.1"), v4("10.2.0.11"));
        let add = |table: &mut Table<u32>, port, backend, flags, idle| {
            table.insert((client, port), vip, source, server, backend, flags, idle);
        };
        add(&mut established, 1, (1, 3), NAT_ESTABLISHED, [5, 5]);
        // Silent for three hours in one direction only: alive.
        add(&mut established, 2, (1, 3), NAT_ESTABLISHED, [3 * 3600, 100]);
        add(&mut established, 3, (1, 3), NAT_ESTABLISHED, [100, 3 * 3600]);
        add(&mut established, 4, (1, 3), NAT_ESTABLISHED, [3 * 3600, 3 * 3600]);
        add(&mut established, 5, (2, 3), CLOSED, [20, 30]);
        add(&mut established, 6, (2, 3), CLOSED, [70, 70]);
        // Of an earlier backend at the same index, and of one that does not serve.
        add(&mut established, 7, (2, 2), NAT_ESTABLISHED, [1, 1]);
        add(&mut established, 8, (3, 3), NAT_ESTABLISHED, [1, 1]);
        add(&mut half_open, 9, (1, 3), 0, [10, 10]);
        add(&mut half_open, 10, (1, 3), 0, [31, 31]);
        established_v6.insert(
            (v6("2001:db8:7::1"), 1),
            v6("2001:db8::10"),
            v6("fd02::1"),
            v6("fd02::11"),
            (2, 3),
            NAT_ESTABLISHED,
            [1, 1],
        );

        let mut tables = NatTables::open(&sandbox.pin_dir()).unwrap();
        let census = tables.collect(NOW, &TIMEOUTS).unwrap();
        assert_eq!(census.flows[&1], FlowCounts { half_open: 1, established: 3, closing: 0 });
        assert_eq!(census.flows[&2], FlowCounts { half_open: 0, established: 1, closing: 1 });
        assert_eq!(census.named, BTreeSet::from([1, 2]));
        assert_eq!(census.removed, 2 * 5);
        assert_eq!(entries(&census, "NAT_ESTABLISHED_V4"), 2 * 4);
        assert_eq!(entries(&census, "NAT_HALF_OPEN_V4"), 2);
        assert_eq!(established.0.keys().count(), 2 * 4);
        let again = tables.collect(NOW, &TIMEOUTS).unwrap();
        assert_eq!((again.removed, &again.flows), (0, &census.flows));
    });
}

#[test]
fn flows_are_listed_with_both_ends_and_by_filter() {
    sandbox(async |sandbox| {
        let _data_path = prepare(sandbox);
        let mut v4s = Table::<u32>::open(&sandbox.pin_dir(), "NAT_ESTABLISHED_V4");
        let mut v6s = Table::<[u32; 4]>::open(&sandbox.pin_dir(), "NAT_HALF_OPEN_V6");
        for port in 100..110 {
            v4s.insert(
                (v4("198.51.100.7"), port),
                v4("192.0.2.10"),
                v4("10.0.0.1"),
                v4("10.2.0.11"),
                (1, 3),
                NAT_ESTABLISHED,
                [50, 40],
            );
        }
        v6s.insert((v6("2001:db8:7::1"), 99), v6("2001:db8::10"), v6("fd02::1"), v6("fd02::11"), (2, 3), 0, [3, 2]);
        let tables = NatTables::open(&sandbox.pin_dir()).unwrap();
        let (flows, all) = tables.list(&FlowQuery { limit: 3, ..FlowQuery::default() }, NOW).unwrap();
        assert_eq!((flows.len(), all), (3, 11));
        let query = FlowQuery { client: Some("2001:db8:7::1".parse().unwrap()), limit: 10, ..FlowQuery::default() };
        let (flows, all) = tables.list(&query, NOW).unwrap();
        assert_eq!(all, 1);
        assert_eq!(flows[0].client, "[2001:db8:7::1]:99".parse().unwrap());
        assert_eq!(flows[0].vip, "[2001:db8::10]:80".parse().unwrap());
        assert_eq!(flows[0].source, "[fd02::1]:99".parse().unwrap());
        assert_eq!(flows[0].backend, "[fd02::11]:8080".parse().unwrap());
        assert_eq!((flows[0].state, flows[0].idle_ns), (FlowState::HalfOpen, 2 * SECOND));
        let query = FlowQuery { backends: Some(BTreeSet::from([1])), limit: 100, ..FlowQuery::default() };
        assert_eq!(tables.list(&query, NOW).unwrap().1, 10);
        let query = FlowQuery { vip: Some("192.0.2.11".parse().unwrap()), limit: 100, ..FlowQuery::default() };
        assert_eq!(tables.list(&query, NOW).unwrap().1, 0);
    });
}

#[test]
fn hundred_thousand_flows_are_counted_without_holding_anything_up() {
    sandbox(async |sandbox| {
        let _data_path = prepare(sandbox);
        let mut table = Table::<u32>::open(&sandbox.pin_dir(), "NAT_ESTABLISHED_V4");
        for number in 0..100_000_u32 {
            let client = (v4("100.64.0.0").swap_bytes() + number / 50_000).to_be();
            let port = (number % 50_000) as u16 + 1024;
            let server = (v4("10.2.0.0").swap_bytes() + number / 50_000).to_be();
            table.insert((client, port), v4("192.0.2.10"), v4("10.0.0.1"), server, (1, 3), NAT_ESTABLISHED, [1, 1]);
        }
        let mut tables = NatTables::open(&sandbox.pin_dir()).unwrap();
        let begun = Instant::now();
        let census = tables.collect(NOW, &TIMEOUTS).unwrap();
        println!("200000 entries in {:?}", begun.elapsed());
        assert_eq!(census.flows[&1].established, 100_000);
        let census = tables.collect(NOW + 3 * 3600 * SECOND, &TIMEOUTS).unwrap();
        assert_eq!((census.removed, table.0.keys().count()), (200_000, 0));
    });
}

#[test]
fn clock_of_the_tables_is_that_of_the_programs() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!((boottime_ns() as f64 / 1e9 - uptime).abs() < 5.0);
}

#[test]
fn counters_are_summed_over_cpus() {
    sandbox(async |sandbox| {
        let _data_path = prepare(sandbox);
        let cpus = aya::util::nr_cpus().unwrap();
        let open = |name: &str| Map::from_map_data(MapData::from_pin(sandbox.pin_dir().join(name)).unwrap()).unwrap();
        let mut stats: PerCpuArray<_, Stats> = open("BACKEND_STATS").try_into().unwrap();
        let mut verdicts: PerCpuArray<_, u64> = open("VERDICTS").try_into().unwrap();
        let each = Stats { packets: 1, bytes: 60, connections: 2, reply_packets: 3, reply_bytes: 180, refused: 4 };
        stats.set(5, PerCpuValues::try_from(vec![each; cpus]).unwrap(), 0).unwrap();
        let ones = || PerCpuValues::try_from(vec![1_u64; cpus]).unwrap();
        verdicts.set(verdict_index(7, Reason::ToBackend as u32), ones(), 0).unwrap();
        for event in EVENTS {
            verdicts.set(verdict_index(8, event), ones(), 0).unwrap();
        }

        let counters = Counters::open(&sandbox.pin_dir()).unwrap();
        let sample = counters.sample(&BTreeSet::new(), &BTreeSet::from([5, 6]), &BTreeSet::from([7, 8])).unwrap();
        let cpus = cpus as u64;
        assert_eq!((sample.backend(5).packets, sample.backend(5).reply_bytes), (cpus, 180 * cpus));
        assert_eq!((sample.backend(5).refused, sample.backend(6)), (4 * cpus, Stats::default()));
        assert_eq!((sample.verdict(7, Reason::ToBackend), sample.verdict(8, Reason::ToBackend)), (cpus, 0));
        for event in EVENTS {
            assert_eq!(sample.total(event), cpus, "event {event}");
        }

        Maps::open(&sandbox.pin_dir()).unwrap().apply(&Write::ClearBackendStats { index: 5 }).unwrap();
        let sample = counters.sample(&BTreeSet::new(), &BTreeSet::from([5]), &BTreeSet::new()).unwrap();
        assert_eq!(sample.backend(5), Stats::default());
    });
}
