//! The cables of the two layouts: links, addresses, routes and the settings that veth needs (see
//! the traps below).

use std::process::Command;

use anyhow::Result;

use crate::{
    bed::{Bed, Layout, balancer_v4, balancer_v6, server_v4, server_v6},
    netns::Netns,
    process::check,
};

pub fn wire(bed: &Bed) -> Result<()> {
    for netns in bed.namespaces() {
        netns.ip("link set lo up")?;
        netns.sysctl(EVERYWHERE)?;
    }
    wire_switch(bed)?;
    match bed.layout {
        Layout::Routed => wire_routed(bed)?,
        Layout::SharedL2 => wire_shared(bed)?,
        Layout::Tunnelled => wire_tunnelled(bed)?,
    }
    // The ports of the SNAT pool, so that a connection keeps its port and can be recognised at the
    // server.
    bed.client.sysctl(&[("net/ipv4/ip_local_port_range", "1024 32767"), ("net/ipv4/tcp_tw_reuse", "1")])
}

/// Routers that answer for all: addresses at once, no filters, no redirects.
const EVERYWHERE: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

const ROUTER: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// One bridge with every server, and whoever else is on their network.
fn wire_switch(bed: &Bed) -> Result<()> {
    bed.switch.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
    bed.switch.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up")?;
    for (number, server) in (1..).zip(&bed.servers) {
        plug(bed, server, "eth0", &format!("s{number}"))?;
        server.ip(&format!("addr add {}/24 dev eth0", server_v4(number)))?;
        server.ip(&format!("addr add {}/64 dev eth0 nodad", server_v6(number)))?;
        server.ip("route add default via 10.2.0.1\n-6 route add default via fd02::1")?;
    }
    Ok(())
}

/// client ── lb ── switch ── servers
fn wire_routed(bed: &Bed) -> Result<()> {
    cable(&bed.client, "eth0", &bed.lb, "eth0")?;
    bed.client.ip("addr add 10.1.0.2/24 dev eth0
         addr add fd01::2/64 dev eth0 nodad
         route add default via 10.1.0.1
         -6 route add default via fd01::1")?;
    plug(bed, &bed.lb, "eth1", "lb")?;
    bed.lb.ip("addr add 10.1.0.1/24 dev eth0
         addr add fd01::1/64 dev eth0 nodad
         addr add 10.2.0.1/24 dev eth1
         addr add fd02::1/64 dev eth1 nodad
         route add 198.18.0.0/15 via 10.1.0.2
         -6 route add fd99::/64 via fd01::2")?;
    bed.lb.sysctl(ROUTER)
}

/// client ── router ── switch ── lb and servers; servers answer to the router, past lb.
fn wire_shared(bed: &Bed) -> Result<()> {
    let router = wire_router(bed)?;
    plug(bed, &bed.lb, "eth0", "lb")?;
    bed.lb.ip("addr add 10.2.0.5/24 dev eth0
         addr add fd02::5/64 dev eth0 nodad
         route add default via 10.2.0.1
         -6 route add default via fd02::1")?;
    router.ip("route add 192.0.2.10/32 via 10.2.0.5
         -6 route add 2001:db8::10/128 via fd02::5")?;
    bed.lb.sysctl(ROUTER)
}

/// client ── router ── switch ── servers, and router ── lb, lb2, ... by a link each; servers answer
/// to the router, past them.
fn wire_tunnelled(bed: &Bed) -> Result<()> {
    let router = wire_router(bed)?;
    for (number, lb) in (1..).zip(bed.balancers()) {
        let port = format!("lb{number}");
        cable(router, &port, lb, "eth0")?;
        router.ip(&format!("addr add 10.3.{number}.1/24 dev {port}\naddr add fd03:{number}::1/64 dev {port} nodad"))?;
        bring_up_balancer(lb, number)?;
        lb.sysctl(ROUTER)?;
    }
    router.sysctl(ECMP)?;
    route_to_balancers(router, &(1..=bed.balancers().count() as u16).collect::<Vec<_>>())
}

/// Its link and addresses, also after the link was down, which loses some of them.
pub fn bring_up_balancer(lb: &Netns, number: u16) -> Result<()> {
    lb.ip(&format!(
        "link set eth0 up
         addr replace {}/24 dev eth0
         addr replace {}/64 dev eth0 nodad
         route replace default via 10.3.{number}.1
         -6 route replace default via fd03:{number}::1",
        balancer_v4(number),
        balancer_v6(number)
    ))
}

/// The router sends what is for the VIPs to these balancers, by ECMP.
pub fn route_to_balancers(router: &Netns, numbers: &[u16]) -> Result<()> {
    let hops = |address: fn(u16) -> std::net::IpAddr| -> String {
        numbers.iter().map(|number| format!(" nexthop via {} dev lb{number}", address(*number))).collect()
    };
    let (v4, v6) = (hops(balancer_v4), hops(balancer_v6));
    router.ip(&format!("route replace 192.0.2.10/32{v4}\n-6 route replace 2001:db8::10/128{v6}"))
}

/// By ports as well, and away from a link that is down.
const ECMP: &[(&str, &str)] = &[
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
    ("net/ipv4/conf/all/ignore_routes_with_linkdown", "1"),
    ("net/ipv6/conf/all/ignore_routes_with_linkdown", "1"),
];

/// client ── router ── switch ── servers, which hold the VIPs.
fn wire_router(bed: &Bed) -> Result<&Netns> {
    let Some(router) = &bed.router else { anyhow::bail!("the layout {:?} has a router", bed.layout) };
    cable(&bed.client, "eth0", router, "eth0")?;
    bed.client.ip("addr add 10.1.0.2/24 dev eth0
         addr add fd01::2/64 dev eth0 nodad
         route add default via 10.1.0.1
         -6 route add default via fd01::1")?;
    plug(bed, router, "eth1", "router")?;
    router.ip("addr add 10.1.0.1/24 dev eth0
         addr add fd01::1/64 dev eth0 nodad
         addr add 10.2.0.1/24 dev eth1
         addr add fd02::1/64 dev eth1 nodad
         route add 198.18.0.0/15 via 10.1.0.2
         -6 route add fd99::/64 via fd01::2")?;
    router.sysctl(ROUTER)?;
    for server in &bed.servers {
        // The VIP is theirs, but they must not say so to the network. (IPv6 answers only for the
        // interface's own addresses.)
        server.sysctl(&[("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")])?;
        server.ip("addr add 192.0.2.10/32 dev lo\naddr add 2001:db8::10/128 dev lo nodad")?;
    }
    Ok(router)
}

/// A cable from `interface` of `netns` to the port `port` of the switch.
fn plug(bed: &Bed, netns: &Netns, interface: &str, port: &str) -> Result<()> {
    cable(netns, interface, &bed.switch, port)?;
    bed.switch.ip(&format!("link set {port} master br0"))
}

/// A veth pair. Checksums are completed before sending (an XDP redirect forwards them as they are),
/// and GRO is on, without which a veth drops what XDP sends to it.
fn cable(left: &Netns, left_name: &str, right: &Netns, right_name: &str) -> Result<()> {
    let (left_ns, right_ns) = (&left.name, &right.name);
    let line = format!("link add name {left_name} netns {left_ns} type veth peer name {right_name} netns {right_ns}");
    check(Command::new("ip").args(line.split_whitespace()))?;
    let ends = [(left, left_name), (right, right_name)];
    for (netns, name) in ends {
        netns.ip(&format!("link set {name} up"))?;
    }
    // Only when both are up: GRO that is turned on earlier doesn't make the other end one to which
    // XDP may redirect.
    for (netns, name) in ends {
        check(netns.command("ethtool").args(["-K", name, "tx", "off", "gro", "off"]))?;
        check(netns.command("ethtool").args(["-K", name, "gro", "on"]))?;
    }
    Ok(())
}
