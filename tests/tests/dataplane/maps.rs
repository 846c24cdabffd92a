use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, Map, MapData};
use ipnet::IpNet;
use lb_common::{
    backend::Backend,
    flow::any_addr,
    hash::HashKey,
    limits::map,
    nat::NatTimeouts,
    ports::PortPool,
    service::Service,
    settings::{LAYOUT, Settings},
    slot::Slot,
};
use lb_userspace::dataplane::{
    data_path::DataPath,
    image::{Image, Slots, Write},
    load::BpfLog,
    maps::Maps,
    rings::Rings,
};

use crate::sandbox::sandbox;

fn settings() -> Settings {
    Settings {
        hash_key: HashKey::from_seed([7; 16]),
        nat_timeouts: NatTimeouts { half_open_ns: 1, established_ns: 2, closing_ns: 3 },
        ports: PortPool::new([(1024, 32767)], 5),
        flags: Settings::FLAG_KEEP_SOURCE,
        layout: LAYOUT,
        vary_source_v4: 0,
        vary_source_v6: 0,
    }
}

fn service(ring_offset: u32) -> Service {
    Service {
        ring_offset,
        ring_len: 7,
        id: 1,
        stats: 1,
        flags: 0,
        mode: lb_common::service::MODE_NAT,
        reserved: [0; 3],
        draining_since_ns: 8,
    }
}

fn backend(address: &str, snat_first: u16) -> Backend {
    let address: std::net::IpAddr = address.parse().unwrap();
    Backend {
        address: any_addr(address),
        port_be: 8080_u16.to_be(),
        family: if address.is_ipv4() { 4 } else { 6 },
        flags: Backend::FLAG_SERVING,
        generation: 3,
        snat_first,
        snat_count: 1,
        ..Backend::FREE
    }
}

fn peer(address: &str, len: u8) -> IpNet {
    IpNet::new(address.parse().unwrap(), len).unwrap()
}

#[test]
fn programs_are_told_of_every_change_of_a_service() {
    sandbox(async |sandbox| {
        let _data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        let pin = MapData::from_pin(sandbox.pin_dir().join(map::SERVICES_EPOCH)).unwrap();
        let epochs = Array::<_, u64>::try_from(Map::Array(pin)).unwrap();
        let epoch = || epochs.get(&0, 0).unwrap();
        assert_eq!(epoch(), 0, "nothing is remembered before an agent has looked");
        let mut last = 0;
        for vip in ["192.0.2.10:80", "[2001:db8::10]:80"] {
            let vip = vip.parse().unwrap();
            let wanted = service(14);
            for write in [Write::Service { vip, service: wanted.into() }, Write::RemoveService { vip }] {
                maps.apply(&write).unwrap();
                assert!(epoch() > last, "{write:?}");
                last = epoch();
            }
        }
        maps.apply(&Write::WayOut { ifindex: 4, flags: 1 }).unwrap();
        assert_eq!(epoch(), last);
        // Somebody else may have changed them.
        let image = maps.read().unwrap();
        maps.fit_shortcuts(&image).unwrap();
        assert!(epoch() > last);
    });
}

#[test]
fn what_is_written_is_read_again_also_by_the_next_agent() {
    sandbox(async |sandbox| {
        let _data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        let empty = maps.read().unwrap();
        assert_eq!((empty.settings, empty.backends.len(), empty.snat_addresses.len()), (None, 0, 0));

        let (v4, v6) = ("192.0.2.10:80".parse().unwrap(), "[2001:db8::10]:80".parse().unwrap());
        let writes = [
            Write::Settings(settings().into()),
            Write::SnatAddress { index: 0, address: Some("10.0.0.1".parse().unwrap()) },
            // Its last twelve bytes are zero, like those of an IPv4 address.
            Write::SnatAddress { index: 2, address: Some("2001:db8::".parse().unwrap()) },
            Write::Backend { index: 1, backend: backend("10.2.0.11", 0).into() },
            Write::Backend { index: 9, backend: backend("fd02::11", 2).into() },
            Write::Slot { at: 14, from: Slot(0), to: Slot::settled(1), now_ds: 70 },
            Write::Slot { at: 15, from: Slot(0), to: Slot::new(9, 1, Slot::TRACKED), now_ds: 70 },
            // Expects what is not there: the owner comes, and what is there stays as the one
            // before.
            Write::Slot { at: 15, from: Slot::new(5, 2, 0), to: Slot::new(7, 2, 0), now_ds: 80 },
            Write::GracePeriod,
            Write::Service { vip: v4, service: service(14).into() },
            Write::Service { vip: v6, service: service(21).into() },
            Write::Address { address: "192.0.2.10".parse().unwrap(), bits: 1 },
            Write::Address { address: "2001:db8::10".parse().unwrap(), bits: 3 },
            Write::WayOut { ifindex: 4, flags: 1 },
            Write::Peer { prefix: peer("10.0.0.0", 24) },
            Write::Peer { prefix: peer("10.0.0.0", 25) },
            Write::Peer { prefix: peer("fd00::1", 128) },
            Write::ClearBackendStats { index: 9 },
            Write::ClearServiceStats { index: 1 },
        ];
        for write in &writes {
            maps.apply(write).unwrap();
        }
        let peers = BTreeSet::from([peer("10.0.0.0", 24), peer("10.0.0.0", 25), peer("fd00::1", 128)]);
        let mut ring = vec![Slot(0); 7];
        (ring[0], ring[1]) = (Slot::settled(1), Slot::new(7, 1, Slot::TRACKED));
        let expected = Image {
            settings: Some(settings()),
            addresses: BTreeMap::from([("192.0.2.10".parse().unwrap(), 1), ("2001:db8::10".parse().unwrap(), 3)]),
            services: BTreeMap::from([(v4, service(14)), (v6, service(21))]),
            backends: BTreeMap::from([(1, backend("10.2.0.11", 0)), (9, backend("fd02::11", 2))]),
            snat_addresses: vec![Some("10.0.0.1".parse().unwrap()), None, Some("2001:db8::".parse().unwrap())],
            peers,
            ways_out: BTreeMap::from([(4, 1)]),
        };
        let rings = Rings::open(&sandbox.pin_dir()).unwrap();
        assert_eq!(
            (rings.time(14), rings.time(15)),
            (0, 70),
            "the clock of a slot counts from when its owners last agreed"
        );
        assert_eq!(maps.slots().range(14, 7), ring);
        assert_eq!(maps.slots().range(21, 7), [Slot(0); 7]);
        assert_eq!(maps.read().unwrap(), expected);
        assert_eq!(Maps::open(&sandbox.pin_dir()).unwrap().read().unwrap(), expected);

        for write in [
            Write::RemoveService { vip: v4 },
            Write::RemoveService { vip: v4 },
            Write::RemoveService { vip: v6 },
            Write::RemoveAddress { address: "192.0.2.10".parse().unwrap() },
            Write::RemoveAddress { address: "2001:db8::10".parse().unwrap() },
            Write::RemoveWayOut { ifindex: 4 },
            Write::RemovePeer { prefix: peer("10.0.0.0", 24) },
            Write::RemovePeer { prefix: peer("10.0.0.0", 24) },
            Write::Backend { index: 1, backend: Backend::FREE.into() },
            Write::SnatAddress { index: 2, address: None },
        ] {
            maps.apply(&write).unwrap();
        }
        let left = maps.read().unwrap();
        assert!(left.services.is_empty() && left.addresses.is_empty() && left.ways_out.is_empty());
        assert_eq!(left.peers, BTreeSet::from([peer("10.0.0.0", 25), peer("fd00::1", 128)]));
        assert_eq!(left.backends.keys().collect::<Vec<_>>(), [&9]);
        assert_eq!(left.snat_addresses, [Some("10.0.0.1".parse().unwrap())]);
    });
}

#[test]
fn writes_beyond_a_map_name_the_map_and_the_key() {
    sandbox(async |sandbox| {
        let _data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
        let mut maps = Maps::open(&sandbox.pin_dir()).unwrap();
        let error =
            maps.apply(&Write::Backend { index: 1 << 20, backend: Backend::FREE.into() }).unwrap_err().to_string();
        assert!(error.contains("BACKENDS") && error.contains("1048576"), "{error}");
        assert!(maps.apply(&Write::Slot { at: u32::MAX, from: Slot(0), to: Slot(0), now_ds: 1 }).is_err());
    });
}
