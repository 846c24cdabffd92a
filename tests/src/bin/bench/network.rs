//! The namespace in which the programs run: a router and the backends are permanent neighbours, so
//! that every FIB look-up succeeds.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use lb_common::flow::Family;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0xfe];
pub const BACKENDS: u8 = 10;

/// The backend `number`, from 1.
pub fn backend(family: Family, number: u8) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 2, 0, 10 + number).into(),
        Family::V6 => Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, u16::from(10 + number)).into(),
    };
    SocketAddr::new(ip, 80)
}

/// The node's own address.
pub fn node(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 2, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The VIP `number` and its port.
pub fn vip(family: Family, number: u8) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 10 + number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(10 + number)).into(),
    };
    SocketAddr::new(ip, 80)
}

/// An address of which Weir knows nothing.
pub fn stranger(family: Family) -> SocketAddr {
    vip(family, 200)
}

/// The address of the client `number`: of 198.18.0.0/15, and of 2001:db8:51::/96.
pub fn client(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0xc612_0000 + number).into(),
        Family::V6 => Ipv6Addr::from_bits(0x2001_0db8_0051_u128 << 80 | u128::from(number)).into(),
    }
}

/// For `bench packet`: one interface on which packets come and go. Returns its index.
pub fn one_armed() -> Result<u32> {
    enter()?;
    batch(&format!("{}{}", cable("eth0", "far"), backends_behind("eth0")))?;
    index("eth0")
}

/// Makes an interface on which nothing happens.
pub fn idle(name: &str) -> Result<u32> {
    batch(&format!("link add {name} type veth peer name {name}-far\n"))?;
    index(name)
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("{name} has no index"))
}

/// For `bench forward`: what is sent through `generator` comes in on `front`, and what is sent out
/// through `back` ends at `sink`.
pub struct Wires {
    pub generator: u32,
    pub front: u32,
    pub back: u32,
    pub sink: u32,
}

pub fn two_armed() -> Result<Wires> {
    enter()?;
    batch(&format!("{}{}{}", cable("front", "generator"), cable("back", "sink"), backends_behind("back")))?;
    Ok(Wires { generator: index("generator")?, front: index("front")?, back: index("back")?, sink: index("sink")? })
}

/// Takes this process into a namespace of its own, which forwards.
fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace")?;
    for name in [
        "ipv4/conf/all/forwarding",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/default/forwarding",
        "ipv6/conf/default/forwarding",
    ] {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, "1").with_context(|| format!("can't write {path}"))?;
    }
    batch("link set lo up\n")
}

fn cable(end: &str, other: &str) -> String {
    format!(
        "link add {end} address {} type veth peer name {other}\nlink set {end} up\nlink set {other} up\n",
        colons(MAC)
    )
}

/// The node's addresses, and the neighbours on that interface.
fn backends_behind(interface: &str) -> String {
    let mut lines = format!(
        "addr add {}/24 dev {interface}\naddr add {}/64 dev {interface} nodad\n",
        node(Family::V4),
        node(Family::V6)
    );
    let mut neighbour = |ip: IpAddr, mac| {
        lines += &format!("neigh add {ip} dev {interface} lladdr {} nud permanent\n", colons(mac));
    };
    for family in Family::BOTH {
        for number in 1..=BACKENDS {
            neighbour(backend(family, number).ip(), [2, 0, 0, 0, 2, 10 + number]);
        }
    }
    neighbour(ROUTER_V4.into(), ROUTER_MAC);
    neighbour(ROUTER_V6.into(), ROUTER_MAC);
    lines + &format!("route add default via {ROUTER_V4}\nroute add default via {ROUTER_V6}\n")
}

const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 254);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0xfe);

/// Runs `ip` commands, one a line.
fn batch(lines: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start ip")?;
    ip.stdin.take().context("ip has no stdin")?.write_all(lines.as_bytes()).context("can't write to ip")?;
    let output = ip.wait_with_output().context("can't wait for ip")?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
