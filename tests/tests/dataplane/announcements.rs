//! What the kernel announces, and what is brought up to date by it.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lb_userspace::node::{
    changes::{Changes, News},
    interfaces::Netlink,
    reach::{Reach, next_hops},
};
use tokio::time::timeout;

use crate::{
    network::named,
    sandbox::{Sandbox, sandbox},
};

/// Long enough for all announcements of a command, and for the news of them.
const QUIET: Duration = Duration::from_millis(300);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// All news until there is none for a while.
async fn news(changes: &mut Changes) -> Vec<News> {
    let mut told = Vec::new();
    while let Ok(news) = timeout(QUIET, changes.next()).await {
        told.push(news.unwrap());
    }
    told
}

/// The interface `one` with 10.1.0.1/24 and fd01::1/64; its index.
async fn network(sandbox: &Sandbox, netlink: &Netlink) -> u32 {
    sandbox.veth("one", "two");
    sandbox.run("ip addr add 10.1.0.1/24 dev one");
    sandbox.run("ip addr add fd01::1/64 dev one nodad");
    // The end of the detection of duplicates is announced as well.
    while !sandbox.run("ip -6 addr show tentative").is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    named(&netlink.interfaces().await.unwrap(), "one").index
}

#[test]
fn each_change_is_announced_as_what_must_be_looked_at_again() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let one = network(sandbox, &netlink).await;
        let mut changes = Changes::watch().unwrap();
        news(&mut changes).await;
        for (command, interfaces, routes, neighbours) in [
            ("ip route add 10.2.0.0/16 via 10.1.0.254", false, true, false),
            ("ip route del 10.2.0.0/16", false, true, false),
            ("ip -6 route add fd02::/64 via fd01::fe", false, true, false),
            ("ip rule add to 10.2.0.0/16 table 7", false, true, false),
            ("ip -6 rule add to fd02::/64 table 7", false, true, false),
            ("ip nexthop add id 7 via 10.1.0.254 dev one", false, true, false),
            ("ip nexthop replace id 7 via 10.1.0.253 dev one", false, true, false),
            ("ip addr add 10.9.0.1/24 dev one", true, true, false),
            ("ip link set one mtu 1400", true, true, false),
            ("ip neigh add 10.1.0.9 dev one managed extern_learn proto 87", false, false, false),
            ("ip neigh del 10.1.0.9 dev one", false, false, true),
        ] {
            sandbox.run(command);
            let told = news(&mut changes).await;
            let lost: BTreeSet<_> = told.iter().flat_map(|news| news.neighbours.iter().copied()).collect();
            let is = (told.iter().any(|news| news.interfaces), told.iter().any(|news| news.routes));
            assert_eq!(is, (interfaces, routes), "{command}: {told:?}");
            assert_eq!(lost.contains(&(one, ip("10.1.0.9"))), neighbours, "{command}: {told:?}");
            assert!(!told.iter().any(|news| news.is_incomplete), "{command}: {told:?}");
        }
    });
}

/// A file of `ip -batch` commands.
fn batch(lines: impl Iterator<Item = String>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    lines.for_each(|line| writeln!(file, "{line}").unwrap());
    file
}

#[test]
fn overflow_of_the_socket_means_that_everything_is_looked_at() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        network(sandbox, &netlink).await;
        let mut changes = Changes::watch().unwrap();
        news(&mut changes).await;
        let routes = (0..5000)
            .map(|number| format!("route add {}/32 via 10.1.0.254", Ipv4Addr::from_bits(0x0b00_0000 + number)));
        let file = batch(routes);
        // Nothing reads the announcements meanwhile: this blocks the only thread.
        sandbox.run(&format!("ip -batch {}", file.path().display()));
        let told = news(&mut changes).await;
        assert!(told.iter().any(|news| news.is_incomplete && news.routes && news.interfaces), "{told:?}");
        assert!(told.len() < 5, "{} times", told.len());
        // And it goes on after that.
        sandbox.run("ip route del 11.0.0.1/32");
        assert_eq!(news(&mut changes).await, [News { routes: true, ..News::default() }]);
    });
}

#[test]
fn routes_to_new_addresses_are_looked_up_alone() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        network(sandbox, &netlink).await;
        sandbox.run("ip route add 10.2.0.0/16 via 10.1.0.254");
        let (old, new, away) = (ip("10.2.0.1"), ip("10.1.0.9"), ip("10.3.0.1"));
        let mut reach = Reach::new(netlink);
        reach.look_up(&BTreeSet::from([old, away])).await.unwrap();
        assert_eq!(reach.routes().keys().copied().collect::<Vec<_>>(), [old]);
        assert_eq!(reach.look_up_new(&BTreeSet::from([old, new, away])).await.unwrap(), 1);
        assert_eq!(reach.routes().keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([old, new]));
        assert_eq!(reach.look_up_new(&BTreeSet::from([new])).await.unwrap(), 0);
        assert_eq!(reach.routes().keys().copied().collect::<Vec<_>>(), [new]);
    });
}

#[test]
fn backends_behind_one_gateway_need_one_entry() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let one = network(sandbox, &netlink).await;
        sandbox.run("ip route add 10.2.0.0/16 via 10.1.0.254");
        sandbox.run("ip -6 route add fd02::/64 via fe80::fe dev one");
        sandbox.run("ip route add 10.4.0.0/16 via inet6 fe80::fe dev one");
        let mut reach = Reach::new(netlink);
        let backends = ["10.2.0.1", "10.2.0.2", "10.2.7.3", "10.4.0.1", "fd02::1", "fd02::2", "10.1.0.9", "10.1.0.1"];
        reach.look_up(&backends.map(ip).into()).await.unwrap();
        let next_hops = next_hops(reach.routes());
        assert_eq!(next_hops, ["10.1.0.254", "10.1.0.9", "fe80::fe"].map(|address| (one, ip(address))).into());
        assert!(reach.has_other_next_hops());
        reach.keep_neighbours().await.unwrap();
        assert!(!reach.has_other_next_hops());
        assert_eq!(sandbox.run("ip neigh show dev one").matches("managed").count(), 3);
    });
}

#[test]
fn neighbour_entry_that_somebody_removes_is_made_again_when_that_is_announced() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let one = network(sandbox, &netlink).await;
        let mut reach = Reach::new(netlink);
        reach.look_up(&[ip("10.1.0.9"), ip("fd01::9")].into()).await.unwrap();
        reach.keep_neighbours().await.unwrap();
        let mut changes = Changes::watch().unwrap();
        for (address, command) in [
            ("10.1.0.9", "ip neigh del 10.1.0.9 dev one"),
            ("fd01::9", "ip neigh del fd01::9 dev one"),
            ("10.1.0.9", "ip neigh flush dev one"),
        ] {
            sandbox.run(command);
            let told = news(&mut changes).await;
            let lost: BTreeSet<_> = told.iter().flat_map(|news| news.neighbours.iter().copied()).collect();
            assert!(lost.contains(&(one, ip(address))) && reach.keeps(&(one, ip(address))), "{command}: {told:?}");
            reach.restore_neighbours(&lost).await;
            let shown = sandbox.run(&format!("ip neigh show {address}"));
            assert!(shown.contains("managed") && !reach.has_refusals(), "{command}: {shown}");
            let told = news(&mut changes).await;
            assert!(!told.iter().any(|news| news.neighbours.contains(&(one, ip(address)))), "{command}: {told:?}");
        }
    });
}

#[test]
fn entry_that_the_kernel_refuses_is_told_and_keeps_no_other_from_being_made() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let one = network(sandbox, &netlink).await;
        let wanted = BTreeSet::from([(9999, ip("10.1.0.8")), (one, ip("10.1.0.9")), (one, ip("10.1.0.10"))]);
        let found = netlink.keep_neighbours(&wanted).await.unwrap();
        assert_eq!(found.refused.keys().copied().collect::<Vec<_>>(), [(9999, ip("10.1.0.8"))]);
        assert_eq!(sandbox.run("ip neigh show dev one").matches("managed").count(), 2);
    });
}

#[test]
fn sixteen_thousand_routes_are_looked_up_in_little_time() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        network(sandbox, &netlink).await;
        sandbox.run("ip route add 10.2.0.0/16 via 10.1.0.254");
        sandbox.run("ip route add unreachable 10.2.0.7/32");
        let addresses: BTreeSet<IpAddr> =
            (0..16_000).map(|number| Ipv4Addr::from_bits(0x0a02_0000 + number).into()).collect();
        let begun = std::time::Instant::now();
        let routes = netlink.routes_to(&addresses).await.unwrap();
        let took = begun.elapsed();
        println!("16,000 look-ups took {took:?}");
        assert_eq!(routes.len(), 15_999);
        assert!(!routes.contains_key(&ip("10.2.0.7")));
        assert!(routes.values().all(|route| route.gateway == Some(ip("10.1.0.254"))));
        // A hundred times what it takes on an idle machine.
        assert!(took < Duration::from_secs(20), "{took:?}");
    });
}
