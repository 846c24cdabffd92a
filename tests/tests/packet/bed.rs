//! The network that the programs see: interfaces, addresses, neighbours and routes of the test's
//! own namespace. The far ends are addresses only; nothing listens there.
//!
//! ```text
//! clients 198.51.100.0/24 ── router 10.1.0.254 ── front [balancer]
//!   ├── back ── backends 10.2.0.11, .12, ...
//!   ├── back ── router 10.2.0.254 ── backends 10.3.0.11, ...
//!   └── side (XDP can't send there) ── backends 10.4.0.11, ...
//! ```

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use lb_common::flow::Family;
use nix::net::if_::if_nametoindex;

use crate::frames::Mac;

pub const FRONT_MAC: Mac = [2, 0, 0, 0, 1, 1];
pub const BACK_MAC: Mac = [2, 0, 0, 0, 2, 1];
pub const SIDE_MAC: Mac = [2, 0, 0, 0, 4, 1];
/// The router towards the clients.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 0xfe];
/// The router on the backends' network.
pub const BACK_ROUTER_MAC: Mac = [2, 0, 0, 0, 2, 0xfe];

/// The backend `number` (from 1) on the backends' network.
pub const fn backend_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 2, 10 + number]
}

pub const FRONT_BACKEND_MAC: Mac = [2, 0, 0, 0, 1, 20];
/// The backend behind `side`.
pub const SIDE_BACKEND_MAC: Mac = [2, 0, 0, 0, 4, 11];

/// The balancer's interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces {
    pub front: u32,
    pub back: u32,
    pub side: u32,
}

fn either(family: Family, v4: &str, v6: &str) -> IpAddr {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
    .parse()
    .unwrap()
}

pub fn vip(family: Family) -> IpAddr {
    either(family, "192.0.2.10", "2001:db8::10")
}

/// A VIP that is an address of the balancer as well.
pub fn node_vip(family: Family) -> IpAddr {
    either(family, "192.0.2.11", "2001:db8::11")
}

/// An address that Weir knows nothing of.
pub fn stranger(family: Family) -> IpAddr {
    either(family, "192.0.2.77", "2001:db8::77")
}

pub fn web(family: Family) -> SocketAddr {
    SocketAddr::new(vip(family), 80)
}

pub fn client(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "198.51.100.7", "2001:db8:51::7"), 4711)
}

pub fn other_client(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "198.51.100.8", "2001:db8:51::8"), 4711)
}

/// The balancer's address on the backends' network, which SNAT uses.
pub fn snat(family: Family) -> IpAddr {
    either(family, "10.2.0.1", "fd02::1")
}

/// A second one.
pub fn other_snat(family: Family) -> IpAddr {
    either(family, "10.2.0.2", "fd02::2")
}

/// The backend `number` (from 1 to 9) on the backends' network.
pub fn backend(family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(either(family, &format!("10.2.0.{}", 10 + number), &format!("fd02::{:x}", 10 + number)), 8080)
}

/// One behind a router of the backends' network.
pub fn routed_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.3.0.11", "fd03::b"), 8080)
}

/// One on the clients' side.
pub fn front_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.1.0.20", "fd01::20"), 8080)
}

/// One behind the interface where XDP can't send.
pub fn side_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.4.0.11", "fd04::b"), 8080)
}

/// One on the backends' network whose neighbour entry is not there.
pub fn silent_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.2.0.99", "fd02::99"), 8080)
}

/// One without a route.
pub fn lost_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.66.0.11", "fd66::b"), 8080)
}

/// An address of the balancer where a backend listens.
pub fn local_backend(family: Family) -> SocketAddr {
    SocketAddr::new(either(family, "10.1.0.1", "fd01::1"), 8080)
}

/// The first of the addresses that tunnels may come from.
pub fn source_prefix(family: Family) -> IpAddr {
    either(family, "10.77.16.0", "fd77::1:0:500:0")
}

/// Makes all that in this thread's namespace.
pub fn make() -> Interfaces {
    let mut lines = String::from("link set lo up\n");
    for (name, mac, net) in [("front", FRONT_MAC, 1), ("back", BACK_MAC, 2), ("side", SIDE_MAC, 4)] {
        let mac = colons(mac);
        lines += &format!(
            "link add {name} address {mac} type veth peer name {name}-far\n\
             link set {name} up\nlink set {name}-far up\n\
             addr add 10.{net}.0.1/24 dev {name}\naddr add fd0{net}::1/64 dev {name} nodad\n"
        );
    }
    lines += "addr add 192.0.2.11/32 dev lo\naddr add 2001:db8::11/128 dev lo nodad\n";
    let mut neighbour = |device: &str, mac: Mac, addresses: [String; 2]| {
        for address in addresses {
            lines += &format!("neigh add {address} dev {device} lladdr {} nud permanent\n", colons(mac));
        }
    };
    neighbour("front", CLIENT_MAC, ["10.1.0.254".into(), "fd01::fe".into()]);
    neighbour("back", BACK_ROUTER_MAC, ["10.2.0.254".into(), "fd02::fe".into()]);
    for number in 1..=9 {
        neighbour(
            "back",
            backend_mac(number),
            [backend(Family::V4, number), backend(Family::V6, number)].map(|b| b.ip().to_string()),
        );
    }
    neighbour(
        "front",
        FRONT_BACKEND_MAC,
        [Family::V4, Family::V6].map(|family| front_backend(family).ip().to_string()),
    );
    neighbour("side", SIDE_BACKEND_MAC, [Family::V4, Family::V6].map(|family| side_backend(family).ip().to_string()));
    lines += "route add default via 10.1.0.254\nroute add default via fd01::fe\n\
              route add 10.3.0.0/24 via 10.2.0.254\nroute add fd03::/64 via fd02::fe\n\
              route add unreachable 10.66.0.0/24\nroute add unreachable fd66::/64\n";
    batch(&lines);
    for name in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, "1").unwrap_or_else(|error| panic!("can't write {path}: {error}"));
    }
    let index = |name: &str| if_nametoindex(name).unwrap();
    Interfaces { front: index("front"), back: index("back"), side: index("side") }
}

/// Runs `ip` commands, one a line.
pub fn batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = ip.wait_with_output().unwrap();
    assert!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
