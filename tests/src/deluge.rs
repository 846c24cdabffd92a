//! Millions of flows in seconds: an XDP program makes the packets, sent by live frames on the link
//! to the balancer, and a door at the other end of that link drops and counts what the balancer
//! sends on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{Xdp, XdpMode},
};
use etherparse::{PacketBuilder, TcpHeader};
use lb_common::bench::{LEN_V4, LEN_V6, Plan, name};
use serde_json::Value;

use crate::{
    bed::{Bed, Layout},
    live,
    netns::Netns,
    process::check,
};

/// What each flow of a deluge sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Syn,
    /// In the middle of a connection that nobody knows.
    Ack,
    /// A SYN and the ACK that would end its handshake.
    SynAndAck,
}

#[derive(Clone, Copy, Debug)]
pub struct Poured {
    pub packets: u64,
    pub time: Duration,
}

impl Poured {
    pub fn per_second(&self) -> f64 {
        self.packets as f64 / self.time.as_secs_f64()
    }
}

/// Sends `flows` distinct flows to `target` by way of the first balancer.
pub fn pour(bed: &Bed, target: SocketAddr, kind: Kind, flows: u32) -> Result<Poured> {
    let (netns, interface) = facing_balancer(bed)?;
    let (ifindex, source) = link(netns, interface)?;
    let (_, destination) = link(&bed.lb, "eth0")?;
    let wire = Wire { interface, ifindex, macs: [source, destination] };
    let idle = Idle::new(netns)?;
    netns.run(move || pour_here(target, kind, flows, wire, idle.ifindex))?
}

/// Where a deluge is poured: an interface of this thread's namespace, and the MAC addresses of both
/// ends of its link.
#[derive(Clone, Copy)]
struct Wire {
    interface: &'static str,
    ifindex: u32,
    macs: [Mac; 2],
}

/// An interface without traffic, to which the generator is attached while it runs: for a program
/// that is not in use the kernel spends 25 ms before and after each run.
struct Idle<'a> {
    netns: &'a Netns,
    ifindex: u32,
}

impl<'a> Idle<'a> {
    fn new(netns: &'a Netns) -> Result<Self> {
        // It stays down: a report of multicast groups would be a packet for the generator to make.
        netns.ip("link add idle type veth peer name idle-peer")?;
        Ok(Self { netns, ifindex: link(netns, "idle")?.0 })
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.netns.ip("link del idle") {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Drops and counts what comes from a deluge right behind the balancer, which is what is looked at
/// here, and not how servers bear a flood.
pub fn close_door(bed: &Bed) -> Result<()> {
    let (netns, interface) = facing_balancer(bed)?;
    // 198.18.0.0/15 and fd99::/64 as sources; of tunnel packets within, behind an outer header of
    // 20 or 40 bytes.
    let rules = format!(
        "table netdev door {{ counter stopped {{}}; chain arriving {{ type filter hook ingress device {interface} \
        priority -500; \
         ip saddr 198.18.0.0/15 counter name stopped drop; ip6 saddr fd99::/64 counter name stopped drop; \
         ip protocol 4 @nh,256,15 25353 counter name stopped drop; \
         ip6 nexthdr 41 @nh,384,64 0xfd99000000000000 counter name stopped drop; }}; }}"
    );
    check(netns.command("nft").arg(rules)).map(drop)
}

/// How many packets the door has stopped.
pub fn stopped(bed: &Bed) -> Result<u64> {
    let (netns, _) = facing_balancer(bed)?;
    let text = check(netns.command("nft").args(["-j", "list", "counters"]))?;
    let shown: Value = serde_json::from_str(&text).context("nft -j printed no JSON")?;
    let counters = shown["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let packets = counters.iter().find_map(|item| item["counter"]["packets"].as_u64());
    packets.with_context(|| format!("{} has no door", netns.name))
}

/// The other end of the first balancer's link.
fn facing_balancer(bed: &Bed) -> Result<(&Netns, &'static str)> {
    match (bed.layout, &bed.router) {
        (Layout::SharedL2, _) => Ok((&bed.switch, "lb")),
        (Layout::Tunnelled, Some(router)) => Ok((router, "lb1")),
        (layout, _) => bail!("no flood in the layout {layout:?}: its balancer has two links"),
    }
}

/// Flows that take part in one run of the program; a SYN's ACK follows after so many others.
const AT_ONCE: u32 = 1 << 14;
/// Odd, so that every number has a flow of its own; large, so that neighbours are far apart.
const STRIDE: u32 = 0x9e37_79b1;

type Mac = [u8; 6];

fn pour_here(target: SocketAddr, kind: Kind, flows: u32, wire: Wire, idle: u32) -> Result<Poured> {
    let mut generator = Generator::load(target, wire, idle)?;
    let mut plans = match kind {
        Kind::Syn => vec![plan(target, flows, wire.macs, true)?],
        Kind::Ack => vec![plan(target, flows, wire.macs, false)?],
        Kind::SynAndAck => vec![plan(target, flows, wire.macs, true)?, plan(target, flows, wire.macs, false)?],
    };
    let started = Instant::now();
    let mut sent = 0;
    while sent < flows {
        let count = AT_ONCE.min(flows - sent);
        for plan in &mut plans {
            generator.run(plan, count)?;
        }
        sent += count;
    }
    Ok(Poured { packets: u64::from(flows) * plans.len() as u64, time: started.elapsed() })
}

/// Frames that a veth takes before its other end has to look (VETH_RING_SIZE); it drops more.
const VETH_RING: u32 = 256;
/// So long its other end may take to look, on a busy machine.
const LAG: Duration = Duration::from_millis(100);

struct Generator {
    ebpf: Ebpf,
    program: &'static str,
    plan: Array<MapData, Plan>,
    wire: Wire,
}

impl Generator {
    fn load(target: SocketAddr, wire: Wire, idle: u32) -> Result<Self> {
        let program = if target.is_ipv4() { name::FLOOD_V4 } else { name::FLOOD_V6 };
        let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/bench.bpf.o");
        if !object.exists() {
            bail!("{} doesn't exist: `cargo xtask test e2e` builds it", object.display());
        }
        let mut ebpf = Ebpf::load_file(&object).with_context(|| format!("can't load {}", object.display()))?;
        xdp(&mut ebpf, program)?.load().with_context(|| format!("the kernel refuses {program}"))?;
        xdp(&mut ebpf, program)?.attach_to_if_index(idle, XdpMode::Driver).context("can't attach to a veth")?;
        let plan = ebpf.take_map(name::PLAN).context("the object has no map PLAN")?.try_into()?;
        Ok(Self { ebpf, program, plan, wire })
    }

    /// Sends the next `count` packets of the plan, never more of them at a time than the veth
    /// takes.
    fn run(&mut self, plan: &mut Plan, count: u32) -> Result<()> {
        let mut left = count;
        while left > 0 {
            let burst = left.min(VETH_RING);
            let before = arrived(self.wire.interface)?;
            self.burst(plan, burst)?;
            let deadline = Instant::now() + LAG;
            while arrived(self.wire.interface)? < before + u64::from(burst) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(50));
            }
            left -= burst;
        }
        Ok(())
    }

    fn burst(&mut self, plan: &mut Plan, count: u32) -> Result<()> {
        self.plan.set(0, *plan, 0).context("can't write to PLAN")?;
        let program = xdp(&mut self.ebpf, self.program)?.fd()?.as_fd();
        live::run(program, self.wire.ifindex, &vec![0; plan.len as usize], count).context("can't send live frames")?;
        let next = self.plan.get(&0, 0).context("can't read PLAN")?.next;
        if next - plan.next != u64::from(count) {
            bail!("{} was to make {count} packets and made {}", self.program, next - plan.next);
        }
        plan.next = next;
        Ok(())
    }
}

/// Packets that the other end of a veth of this thread's namespace has taken, or that were dropped
/// on the way there.
fn arrived(interface: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("can't read net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Vec<u64> =
        line.with_context(|| format!("no interface {interface}"))?.split_whitespace().flat_map(str::parse).collect();
    // Eight of what was received; bytes, packets, errors and drops of what was sent.
    let sent = |at: usize| fields.get(8 + at).copied().with_context(|| format!("net/dev says {text:?}"));
    Ok(sent(1)? + sent(3)?)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is not an XDP program"))
}

/// The packets' numbers are their sequence numbers; an ACK is one ahead.
fn plan(target: SocketAddr, flows: u32, [source, destination]: [Mac; 2], syn: bool) -> Result<Plan> {
    let mut tcp = TcpHeader::new(0, target.port(), 0, 64_240);
    (tcp.syn, tcp.ack) = (syn, !syn);
    let ethernet = PacketBuilder::ethernet2(source, destination);
    let (builder, len, client) = match target.ip() {
        IpAddr::V4(to) => {
            let from = Ipv4Addr::new(198, 18, 0, 0);
            (ethernet.ipv4(from.octets(), to.octets(), 64), LEN_V4, from.to_bits())
        }
        IpAddr::V6(to) => {
            let from = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0);
            (ethernet.ipv6(from.octets(), to.octets(), 64), LEN_V6, 0)
        }
    };
    let mut frame = Vec::new();
    builder.tcp_header(tcp).write(&mut frame, &[]).context("can't make a frame")?;
    frame.resize(len as usize, 0);
    Ok(Plan {
        flow_mask: flows.next_power_of_two() - 1,
        stride: STRIDE,
        client,
        ahead: u32::from(!syn),
        ..Plan::of_frame(&frame).context("a frame without an Ethernet header")?
    })
}

/// Index and address of an interface.
fn link(netns: &Netns, interface: &str) -> Result<(u32, Mac)> {
    let text = check(netns.command("ip").args(["-j", "link", "show", interface]))?;
    let shown: Value = serde_json::from_str(&text).context("ip -j printed no JSON")?;
    let index = shown[0]["ifindex"].as_u64().context("no ifindex")?;
    let address = shown[0]["address"].as_str().context("no address")?;
    let mut mac = Mac::default();
    for (byte, text) in mac.iter_mut().zip(address.split(':')) {
        *byte = u8::from_str_radix(text, 16).with_context(|| format!("{address} is no MAC address"))?;
    }
    Ok((u32::try_from(index)?, mac))
}
