//! `dsr-ipip` to backends whose own kernel takes packets out of the tunnel: guests, because this
//! machine's kernel may not have such tunnels.
//!
//! `s1` is beside the balancer, and its tunnels end at its address of the VIP's family (4in4,
//! 6in6); `s2` is behind the router, and its tunnels end at its address of the other family (4in6,
//! 6in4).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};
use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIP_V4, VIP_V6, VIPS},
    capture::Capture,
    config::{AgentConfig, Backend, Service},
    guest::{Guest, Place, UPLOAD_PORTS},
    load::{Load, Spec},
    process::check,
    tally::{Tally, expect_no_failure},
    tools::sha256_of_file,
};

use crate::{
    scene::{HEALTH, seconds},
    stage::Stage,
};

/// What leaves the balancer in a tunnel, whatever is in it.
const TUNNELLED: &str = "ip proto 4 or ip proto 41 or ip6 proto 4 or ip6 proto 41";
/// The balancer's own addresses.
const BALANCER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 2, 0, 5)), IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 5))];
/// Expedited forwarding, RFC 3246.
const EF: u8 = 46;

/// Dropped in this order: the agent goes before its bed.
struct Tunnels {
    agent: Agent,
    guests: [Guest; 2],
    bed: Bed,
}

impl Tunnels {
    fn new(change: impl FnOnce(&mut AgentConfig)) -> Result<Self> {
        let bed = Bed::new(Layout::SharedL2, 0)?;
        let mut guests = [Guest::start(&bed, 1, Place::Switch)?, Guest::start(&bed, 2, Place::BehindRouter)?];
        guests.iter_mut().try_for_each(|guest| guest.wait_ready(&bed))?;
        let mut config = configuration(&bed, &guests);
        change(&mut config);
        let agent = Agent::start(&bed, &config)?;
        agent.wait_all_up()?;
        Ok(Self { agent, guests, bed })
    }

    /// Where the tunnel to guest `index` ends for this VIP.
    fn end(&self, index: usize, vip: IpAddr) -> IpAddr {
        end_of(&self.guests[index], index, vip)
    }

    /// Frames as they leave the balancer while `work` runs.
    fn tunnelled(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Tunnelled>> {
        let capture = Capture::start(&self.bed.switch, "lb", TUNNELLED)?;
        work()?;
        capture.stop()?.iter().map(|frame| Tunnelled::read(frame)).collect()
    }
}

fn end_of(guest: &Guest, index: usize, vip: IpAddr) -> IpAddr {
    // `s2`'s other address.
    guest.address(if index == 0 { vip } else { VIPS[usize::from(vip.is_ipv4())] })
}

/// `web` over both guests; and for each guest a service of its own, to which clients send.
fn configuration(bed: &Bed, guests: &[Guest; 2]) -> AgentConfig {
    let backend = |index: usize, vip: &IpAddr, port| {
        let guest: &Guest = &guests[index];
        let tunnel = (index == 1).then(|| end_of(guest, index, *vip));
        Backend { tunnel, ..Backend::new(SocketAddr::new(guest.address(*vip), port)) }
    };
    let mut config = AgentConfig::web(bed, 0, HEALTH);
    let web = &mut config.services[0];
    web.mode = "dsr-ipip";
    web.backends = VIPS.iter().flat_map(|vip| [backend(0, vip, 80), backend(1, vip, 80)]).collect();
    let uploads = (0..).zip(UPLOAD_PORTS).map(|(index, port)| Service {
        name: format!("upload-{port}"),
        port,
        health: None,
        backends: VIPS.iter().map(|vip| backend(index, vip, port)).collect(),
        ..config.services[0].clone()
    });
    let uploads: Vec<Service> = uploads.collect();
    config.services.extend(uploads);
    config
}

/// A client's packet in a tunnel, as it was seen on the wire.
#[derive(Clone, Debug)]
struct Tunnelled {
    outer: Ip,
    inner: Ip,
    tcp: TcpHeader,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Ip {
    src: IpAddr,
    dst: IpAddr,
    /// DSCP and ECN.
    class: u8,
    ttl: u8,
}

impl Tunnelled {
    fn read(frame: &[u8]) -> Result<Self> {
        let (ethernet, rest) = etherparse::Ethernet2Header::from_slice(frame)?;
        let (outer, carried, rest) = match ethernet.ether_type {
            EtherType::IPV4 => Ip::v4(rest)?,
            EtherType::IPV6 => Ip::v6(rest)?,
            other => bail!("{other:?} is not IP"),
        };
        let (inner, carried, rest) = match carried {
            IpNumber::IPV4 => Ip::v4(rest)?,
            IpNumber::IPV6 => Ip::v6(rest)?,
            other => bail!("{outer:?} carries protocol {other:?}"),
        };
        if carried != IpNumber::TCP {
            bail!("{outer:?} carries {inner:?} with protocol {carried:?}");
        }
        Ok(Self { outer, inner, tcp: TcpHeader::from_slice(rest)?.0 })
    }

    fn flow(&self) -> (IpAddr, u16, u16) {
        (self.inner.src, self.tcp.source_port, self.tcp.destination_port)
    }
}

impl Ip {
    fn v4(bytes: &[u8]) -> Result<(Self, IpNumber, &[u8])> {
        let (header, rest) = Ipv4Header::from_slice(bytes)?;
        if header.header_checksum != header.calc_header_checksum() {
            bail!("the checksum of {header:?} is wrong");
        }
        let class = (header.dscp.value() << 2) | header.ecn.value();
        let ip = Self { src: header.source.into(), dst: header.destination.into(), class, ttl: header.time_to_live };
        Ok((ip, header.protocol, rest))
    }

    fn v6(bytes: &[u8]) -> Result<(Self, IpNumber, &[u8])> {
        let (header, rest) = Ipv6Header::from_slice(bytes)?;
        let (src, dst) = (header.source.into(), header.destination.into());
        Ok((Self { src, dst, class: header.traffic_class, ttl: header.hop_limit }, header.next_header, rest))
    }
}

#[test]
fn ipip_backends_answer_through_tunnels_of_both_families_with_dscp_and_ecn_copied() -> Result<()> {
    let tunnels = Tunnels::new(|_| {})?;
    let client = &tunnels.bed.client;
    client.sysctl(&[("net/ipv4/tcp_ecn", "1")])?;
    let marks = "table inet marks { chain out { type filter hook output priority 0; ip dscp set ef; }; \
                 chain out6 { type filter hook output priority 0; meta nfproto ipv6 ip6 dscp set ef; }; }";
    check(client.command("nft").arg(marks))?;
    let seen = tunnels.tunnelled(|| {
        for vip in VIPS {
            let target = SocketAddr::new(vip, 80);
            let short = Load::start(client, Spec { pause: Duration::from_millis(30), ..Spec::short(target) })?;
            let long = Load::start(client, Spec::long(target, 8))?;
            seconds(2.0);
            let (short, long) = (short.stop()?, long.stop()?);
            expect_no_failure(&short)?;
            expect_no_failure(&long)?;
            let tally = Tally::of(short.iter().chain(&long));
            eprintln!("{vip}: {tally:?}");
            for server in ["s1", "s2"] {
                let share = tally.servers.get(server).copied().unwrap_or(0) as f64 / tally.connections as f64;
                assert!(tally.connections > 30 && share > 0.2, "{vip}: {server} got {share:.2} of {tally:?}");
            }
        }
        Ok(())
    })?;
    for vip in VIPS {
        for index in 0..2 {
            let end = tunnels.end(index, vip);
            let to: Vec<&Tunnelled> = seen.iter().filter(|p| p.inner.dst == vip && p.outer.dst == end).collect();
            assert!(to.len() > 50, "{} packets to {vip} in tunnels to {end}", to.len());
            for packet in &to {
                assert_eq!(packet.outer.src, BALANCER[usize::from(end.is_ipv6())], "{packet:?}");
                assert_eq!((packet.inner.class >> 2, packet.outer.class), (EF, packet.inner.class), "{packet:?}");
                // Router and balancer have each taken one.
                assert_eq!(packet.inner.ttl, 62, "{packet:?}");
            }
            // ECT(0) on what carries data.
            assert!(to.iter().any(|packet| packet.inner.class & 3 == 2), "no ECN was negotiated with {end}");
        }
    }
    Ok(())
}

#[test]
fn ipip_outer_source_varies_by_flow_within_the_prefix_of_the_operator() -> Result<()> {
    const PREFIXES: [&str; 2] = ["10.77.0.0/16", "fd77:1:2:3::/96"];
    let tunnels = Tunnels::new(|config| config.tunnel_source = PREFIXES.to_vec())?;
    let seen = tunnels.tunnelled(|| {
        for vip in VIPS {
            let short = Load::start(&tunnels.bed.client, Spec::short((vip, 80).into()))?;
            seconds(2.0);
            let short = short.stop()?;
            expect_no_failure(&short)?;
        }
        Ok(())
    })?;
    let mut sources: BTreeMap<(bool, bool), BTreeSet<IpAddr>> = BTreeMap::new();
    let mut flows = BTreeMap::new();
    for packet in &seen {
        let inside = match packet.outer.src {
            IpAddr::V4(src) => src.octets()[..2] == [10, 77],
            IpAddr::V6(src) => src.segments()[..6] == [0xfd77, 1, 2, 3, 0, 0],
        };
        assert!(inside, "{packet:?}");
        let first = flows.entry(packet.flow()).or_insert(packet.outer.src);
        assert_eq!(*first, packet.outer.src, "a flow's source is always the same: {packet:?}");
        let kind = (packet.inner.dst.is_ipv4(), packet.outer.dst.is_ipv4());
        sources.entry(kind).or_default().insert(packet.outer.src);
    }
    assert_eq!(sources.len(), 4, "every kind of tunnel was used");
    for (kind, sources) in &sources {
        let of_kind = |(client, ..): &(IpAddr, u16, u16), src: &IpAddr| (client.is_ipv4(), src.is_ipv4()) == *kind;
        let flows = flows.iter().filter(|(flow, src)| of_kind(flow, src)).count();
        // Of 200 flows in 65,536 addresses fewer than one in a hundred meets another.
        assert!(flows > 30 && sources.len() * 10 > flows * 9, "{kind:?}: {} sources for {flows} flows", sources.len());
    }
    Ok(())
}

const MTU: u16 = 1500;

#[test]
fn ipip_upload_of_full_packets_completes_because_the_client_is_told_what_fits() -> Result<()> {
    let tunnels = Tunnels::new(|_| {})?;
    let Tunnels { bed, .. } = &tunnels;
    for vip in VIPS {
        for index in 0..2 {
            tunnels.expect_upload(index, vip, 8 << 20)?;
            let outer = if tunnels.end(index, vip).is_ipv4() { 20 } else { 40 };
            tunnels.expect_told(vip, MTU - outer)?;
        }
    }
    tunnels.expect_counted("packet_too_big")?;

    // Less fits on the way to `s2` than on the link to the router.
    bed.lb.ip("route add 10.4.0.12/32 via 10.2.0.1 mtu lock 1400")?;
    tunnels.expect_upload(1, VIP_V6, 1 << 20)?;
    tunnels.expect_told(VIP_V6, 1400 - 20)?;

    // A client that has path MTU discovery turned off, and lets its packets be cut.
    bed.client.sysctl(&[("net/ipv4/ip_no_pmtu_disc", "1")])?;
    tunnels.expect_upload(0, VIP_V4, 1 << 20)
}

#[test]
fn ipip_upload_completes_with_generic_xdp() -> Result<()> {
    let tunnels = Tunnels::new(|config| config.xdp_mode = "generic")?;
    for vip in VIPS {
        for index in 0..2 {
            tunnels.expect_upload(index, vip, 8 << 20)?;
        }
    }
    Ok(())
}

#[test]
fn ipip_backends_with_weir_tell_clients_an_mss_that_fits_into_the_tunnel() -> Result<()> {
    let bed = Bed::new(Layout::Tunnelled, 2)?;
    let config = AgentConfig::web(&bed, 2, HEALTH);
    let stage = Stage::with(bed, &config)?;
    for vip in VIPS {
        // Links of 1500 bytes; inner and outer header are of the VIP's family.
        let header = if vip.is_ipv4() { 20 } else { 40 };
        let most = 1500 - 2 * header - 20;
        for _ in 0..8 {
            let target = SocketAddr::new(vip, 80);
            let mss = stage.bed.client.run(move || mss_towards(target))??;
            // What the client has left behind the timestamp of each segment (RFC 7323).
            assert_eq!(mss, most - 12, "{target}");
        }
    }
    Ok(())
}

/// What a client may send at a time.
fn mss_towards(target: SocketAddr) -> Result<u32> {
    let stream =
        TcpStream::connect_timeout(&target, Duration::from_secs(5)).with_context(|| format!("can't reach {target}"))?;
    getsockopt(&stream, TcpMaxSeg).with_context(|| format!("no MSS towards {target}"))
}

impl Tunnels {
    /// Sends this many bytes through the tunnel to guest `index`, which must get them as they are.
    fn expect_upload(&self, index: usize, vip: IpAddr, size: usize) -> Result<()> {
        let target = SocketAddr::new(vip, UPLOAD_PORTS[index]);
        let data: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
        let file = self.bed.dir().join("upload");
        std::fs::write(&file, &data).with_context(|| format!("can't write {}", file.display()))?;
        // What the client has learned for another tunnel to this VIP.
        self.bed.client.ip("route flush cache\n-6 route flush cache")?;
        let began = Instant::now();
        let got = self.bed.client.run(move || upload(target, &data))??;
        eprintln!("{target}: {:?}", began.elapsed());
        assert_eq!(got, sha256_of_file(&file)?, "{target}");
        Ok(())
    }

    /// Packets of a service must have ended at XDP for this reason; the metrics show only those
    /// that have occurred.
    fn expect_counted(&self, reason: &str) -> Result<()> {
        let metrics = self.agent.metrics()?;
        let counted = metrics.lines().filter(|line| line.starts_with("weir_service_refusals_total{"));
        let lines: Vec<&str> = counted.collect();
        assert!(lines.iter().any(|line| line.contains(&format!("reason=\"{reason}\""))), "no {reason}: {lines:#?}");
        Ok(())
    }

    /// The client must know of a path MTU to this VIP.
    fn expect_told(&self, vip: IpAddr, mtu: u16) -> Result<()> {
        let route = check(self.bed.client.command("ip").args(["route", "get", &vip.to_string()]))?;
        assert!(route.contains(&format!("mtu {mtu} ")), "the client should know that {mtu} bytes fit: {route}");
        Ok(())
    }
}

/// Sends `data`; what the server says that its SHA-256 is.
fn upload(target: SocketAddr, data: &[u8]) -> Result<String> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("can't reach {target}"))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(data).with_context(|| format!("{target} does not take it all"))?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{target} does not answer"))?;
    answer.split_whitespace().next().map(str::to_owned).with_context(|| format!("{target} answered {answer:?}"))
}
