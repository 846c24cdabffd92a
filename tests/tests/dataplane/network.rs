use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{
    flow::Family,
    limits::{WAY_OUT_NO_TX, WAY_OUT_REDIRECT},
};
use lb_userspace::{
    dataplane::{data_path::DataPath, hooks::Hook, load::BpfLog},
    model::XdpMode,
    node::{
        changes::Changes,
        genl::Genl,
        interfaces::{HookMode, Interface, Netlink, matching},
        neighbours::{Neighbourhood, NextHop},
        ways_out::ways_out,
    },
};

use crate::sandbox::sandbox;

pub fn named<'a>(interfaces: &'a BTreeMap<u32, Interface>, name: &str) -> &'a Interface {
    interfaces.values().find(|interface| interface.name == name).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Asks until all of `wanted` are resolved, for at most ten seconds.
pub async fn resolved(netlink: &Netlink, wanted: &BTreeSet<NextHop>) -> Neighbourhood {
    for _ in 0..100 {
        let found = netlink.keep_neighbours(wanted).await.unwrap();
        if found.unresolved.is_empty() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("still unresolved: {:?}", netlink.keep_neighbours(wanted).await);
}

#[test]
fn interfaces_are_told_with_their_addresses_and_changes_are_announced() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let mut changes = Changes::watch().unwrap();
        sandbox.veth("one", "two");
        sandbox.run("ip addr add 10.1.0.1/24 dev one");
        sandbox.run("ip addr add fd01::1/64 dev one nodad");
        tokio::time::timeout(Duration::from_secs(5), changes.next()).await.unwrap().unwrap();

        let all = netlink.interfaces().await.unwrap();
        let one = named(&all, "one");
        assert_eq!((one.kind.as_deref(), one.mtu, one.is_up, one.is_loopback), (Some("veth"), 1500, true, false));
        assert!(one.mac.is_some() && one.xdp.is_none());
        assert!(one.addresses.contains(&ip("10.1.0.1")) && one.addresses.contains(&ip("fd01::1")));
        let patterns = ["t*".to_owned(), "eth*".to_owned(), "l*".to_owned()];
        let (found, unmet) = matching(&all, &patterns);
        assert_eq!(found.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["two"]);
        assert_eq!(unmet, ["eth*", "l*"]);
    });
}

#[test]
fn routes_say_the_interface_the_next_hop_and_the_source() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        sandbox.veth("one", "two");
        sandbox.run("ip addr add 10.1.0.1/24 dev one");
        sandbox.run("ip addr add fd01::1/64 dev one nodad");
        sandbox.run("ip route add 10.2.0.0/16 via 10.1.0.254");
        sandbox.run("ip -6 route add fd02::/64 via fd01::fe");
        sandbox.run("ip route add unreachable 10.3.0.0/16");
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        for (to, gateway, source) in [
            ("10.1.0.9", None, "10.1.0.1"),
            ("10.2.3.4", Some("10.1.0.254"), "10.1.0.1"),
            ("fd01::9", None, "fd01::1"),
            ("fd02::9", Some("fd01::fe"), "fd01::1"),
        ] {
            let route = netlink.route_to(ip(to)).await.unwrap().unwrap();
            assert_eq!((route.ifindex, route.is_local), (one, false), "{to}");
            assert_eq!((route.gateway, route.source), (gateway.map(ip), Some(ip(source))), "{to}");
            assert_eq!(route.next_hop(ip(to)), ip(gateway.unwrap_or(to)));
        }
        assert!(netlink.route_to(ip("10.1.0.1")).await.unwrap().unwrap().is_local);
        // The kernel makes the local route of an IPv6 address a moment after the address.
        let mut tries = 0;
        while !netlink.route_to(ip("fd01::1")).await.unwrap().unwrap().is_local {
            tries += 1;
            assert!(tries < 500, "fd01::1 does not become local");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for nowhere in ["10.3.0.1", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(netlink.route_to(ip(nowhere)).await.unwrap(), None, "{nowhere}");
        }
    });
}

#[test]
fn next_hops_are_kept_resolved_as_long_as_they_are_wanted() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let host = sandbox.host_behind("one", "10.1.0.2/24");
        host.run(sandbox, "ip addr add fd01::2/64 dev far nodad");
        sandbox.run("ip addr add 10.1.0.1/24 dev one");
        sandbox.run("ip addr add fd01::1/64 dev one nodad");
        sandbox.run("ip neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev one nud permanent");
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        let wanted = BTreeSet::from([(one, ip("10.1.0.2")), (one, ip("10.1.0.3")), (one, ip("fd01::2"))]);
        assert_eq!(resolved(&netlink, &wanted).await.resolved, wanted);

        // The next agent keeps what it finds, takes its own away, and leaves a person's.
        let next = Netlink::connect().unwrap();
        next.keep_neighbours(&wanted).await.unwrap();
        let shown = sandbox.run("ip neigh show dev one");
        assert!(shown.contains("10.1.0.2 lladdr") && shown.contains("fd01::2 lladdr"), "{shown}");
        next.keep_neighbours(&BTreeSet::new()).await.unwrap();
        let shown = sandbox.run("ip neigh show dev one");
        assert!(!shown.contains("10.1.0.2") && !shown.contains("fd01::2"), "{shown}");
        assert!(shown.contains("10.1.0.3 lladdr 02:00:00:00:00:03 PERMANENT"), "{shown}");
    });
}

#[test]
fn entries_of_earlier_versions_become_exempt_from_the_limit_of_the_table() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        sandbox.veth("one", "two");
        sandbox.run("ip addr add 10.1.0.1/24 dev one");
        sandbox.run("ip neigh add 10.1.0.2 dev one managed proto 87");
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        let counted = |counted: BTreeMap<Family, usize>| counted.get(&Family::V4).copied().unwrap_or_default();
        assert_eq!(counted(netlink.counted_neighbours().await.unwrap()), 1);
        netlink.keep_neighbours(&BTreeSet::from([(one, ip("10.1.0.2"))])).await.unwrap();
        assert_eq!(counted(netlink.counted_neighbours().await.unwrap()), 0);
        let shown = sandbox.run("ip neigh show 10.1.0.2");
        assert!(shown.contains("managed extern_learn"), "{shown}");
    });
}

#[test]
fn more_next_hops_are_kept_than_the_neighbour_table_has_room_for() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        sandbox.veth("one", "two");
        sandbox.run("ip addr add 10.1.0.1/16 dev one");
        sandbox.run("ip addr add fd01::1/64 dev one nodad");
        let tables = netlink.neighbour_tables().await.unwrap();
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        let mut wanted = BTreeSet::new();
        for family in Family::BOTH {
            // Where the limit was raised far, so many would only take time.
            let number = tables[&family].limit.min(4000) + 100;
            wanted.extend((1..=number).map(|number| match family {
                Family::V4 => (one, Ipv4Addr::from_bits(0x0a01_0100 + number).into()),
                Family::V6 => (one, Ipv6Addr::from_bits((0xfd01 << 112) + 0x100 + u128::from(number)).into()),
            }));
        }
        assert_eq!(netlink.keep_neighbours(&wanted).await.unwrap().refused, BTreeMap::new());
        // The kernel's collection of garbage comes at once when the table is full.
        let found = netlink.keep_neighbours(&wanted).await.unwrap();
        assert_eq!(found.refused, BTreeMap::new());
        assert_eq!(sandbox.run("ip neigh show dev one").matches("managed").count(), wanted.len());
        assert!(netlink.counted_neighbours().await.unwrap().values().sum::<usize>() < 10);
    });
}

#[test]
fn silent_next_hop_is_unresolved_until_it_answers() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let host = sandbox.host_behind("one", "10.1.0.2/24");
        sandbox.run("ip addr add 10.1.0.1/24 dev one");
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        let wanted = BTreeSet::from([(one, ip("10.1.0.9"))]);
        netlink.keep_neighbours(&wanted).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(netlink.keep_neighbours(&wanted).await.unwrap().unresolved, wanted);
        host.run(sandbox, "ip addr add 10.1.0.9/24 dev far");
        resolved(&netlink, &wanted).await;
    });
}

/// The interfaces on which the program runs in the driver.
fn native(hooks: &[Hook]) -> BTreeSet<u32> {
    hooks.iter().filter(|hook| hook.xdp == Some(HookMode::Native)).map(|hook| hook.ifindex).collect()
}

#[test]
fn veth_is_a_way_out_when_its_other_end_takes_redirected_packets() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let genl = Genl::connect().unwrap();
        sandbox.veth("one", "two");
        let ways = async |hooks: &[Hook]| {
            let all = netlink.interfaces().await.unwrap();
            let ways = ways_out(&genl, &all, &native(hooks)).unwrap();
            ways.keys().map(|index| all[index].name.clone()).collect::<BTreeSet<_>>()
        };
        assert_eq!(ways(&[]).await, BTreeSet::new());
        sandbox.run("ethtool -K two gro on");
        assert_eq!(ways(&[]).await, BTreeSet::from(["one".to_owned()]));
        let mut data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
        let all = netlink.interfaces().await.unwrap();
        let hooks = data_path.sync(&[named(&all, "one")], XdpMode::Native);
        assert_eq!(ways(&hooks).await, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
        // A veth with native XDP drops XDP_TX unless its other end runs a program as well.
        let one = named(&all, "one").index;
        assert_eq!(ways_out(&genl, &all, &native(&hooks)).unwrap()[&one], WAY_OUT_REDIRECT | WAY_OUT_NO_TX);
        sandbox.run("ethtool -K two gro off");
        assert_eq!(ways_out(&genl, &all, &native(&hooks)).unwrap()[&one], WAY_OUT_NO_TX);
    });
}

#[test]
fn offloads_and_native_xdp_are_told() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let genl = Genl::connect().unwrap();
        sandbox.veth("one", "two");
        sandbox.run("ip link add bridge type bridge");
        let all = netlink.interfaces().await.unwrap();
        let (one, bridge) = (named(&all, "one").index, named(&all, "bridge").index);
        assert!(genl.xdp_features(one).unwrap().unwrap().has_native());
        assert!(!genl.xdp_features(bridge).unwrap().unwrap().has_native());
        assert!(!genl.offloads(one).unwrap().unwrap().contains("rx-gro"));
        sandbox.run("ethtool -K one gro on");
        assert!(genl.offloads(one).unwrap().unwrap().contains("rx-gro"));
    });
}
