//! What becomes of a packet: the same for XDP and TC.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_ktime_get_boot_ns};
use lb_common::{
    service::{MODE_NAT, Service, address},
    settings::Settings,
    trace::rule,
    verdict::Reason,
};

use crate::{
    decap, dsr,
    family::{Family, ip_header},
    forward, icmp, maps,
    nat::{self, FromClient, Now},
    packet::Frame,
    parse::{self, L3, Link, PROTOCOL_TCP, RST, Tcp},
    ports, select, service,
    work::Work,
};

/// Decides for the packet behind `link`: where it goes is in `work` then. An error is a verdict
/// that sends nothing on.
#[inline(never)]
pub fn decide<V: Family, F: Frame>(
    frame: &F,
    link: &Link,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    let ip = ip_header::<V, F>(frame, link.l3).ok_or(Reason::NotIp)?;
    work.forget_transport();
    let (src, dst) = V::addresses(&ip);
    work.from.src = src;
    work.from.dst = dst;
    let bits = V::address_bits(&work.from.dst);
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotVip)?;
    if bits & address::VIP != 0 {
        if link.tagged {
            return Err(Reason::VlanTag);
        }
        return match to_vip::<V, F>(frame, ifindex, settings, bits, work) {
            // Where the VIP is the node's own address too, whatever is not served is the node's.
            Err(reason) if bits & address::NODE != 0 => Err(left_to_node(reason)),
            verdict => verdict,
        };
    }
    if bits & address::TUNNEL != 0 && !link.tagged {
        work.transport = V::walk(frame, L3).map_err(|_| Reason::NotVip)?;
        if decap::is_tunnel(work.transport.protocol) {
            return Err(decap::judge::<V>(work));
        }
    }
    let keeps =
        settings.flags & Settings::FLAG_KEEP_SOURCE != 0 && V::address_bits(&work.from.src) & address::KEEP_SOURCE != 0;
    if (bits & address::SNAT != 0 || keeps) && !link.tagged {
        return from_backend::<V, F>(frame, ifindex, settings, keeps, work);
    }
    Err(Reason::NotVip)
}

#[inline(always)]
fn left_to_node(reason: Reason) -> Reason {
    match reason {
        Reason::PortNotServed
        | Reason::NotServedProtocol
        | Reason::Echo
        | Reason::Malformed
        | Reason::Fragment
        | Reason::ExtensionHeaders => Reason::NodePort,
        other => other,
    }
}

#[inline(always)]
fn to_vip<V: Family, F: Frame>(
    frame: &F,
    ifindex: u32,
    settings: &'static Settings,
    bits: u32,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    work.transport = V::walk(frame, L3)?;
    if work.transport.protocol == V::ICMP {
        return icmp::to_vip::<V, F>(frame, settings, ifindex, work);
    }
    if bits & address::TUNNEL != 0 && decap::is_tunnel(work.transport.protocol) {
        return Err(decap::judge::<V>(work));
    }
    if work.transport.protocol != PROTOCOL_TCP {
        return Err(Reason::NotServedProtocol);
    }
    parse::tcp::<V, F>(frame, work)?;
    let Some(service) = service::find::<V>(&work.from.dst, work.from.dst_port_be) else {
        // Where the node's only address is the VIP too, backends answer to it.
        if bits & address::SNAT != 0 && answer::<V, F>(frame, ifindex, settings, work).is_ok() {
            return Ok(());
        }
        // The node's own connections know what to do with a reset.
        let is_nodes = bits & address::NODE != 0;
        return Err(if is_nodes { Reason::PortNotServed } else { unless_reset(&work.tcp, Reason::PortNotServed) });
    };
    work.stats = service.stats;
    choose::<V, F>(frame, ifindex, settings, service, work).map_err(|reason| {
        let reason = if reason == Reason::UnknownFlow { unknown(settings, reason) } else { reason };
        unless_reset(&work.tcp, reason)
    })
}

/// The verdict on a packet of a connection that nobody knows: another program of ours may, while it
/// hands over.
#[inline(always)]
fn unknown(settings: &Settings, reason: Reason) -> Reason {
    if settings.flags & Settings::FLAG_HANDOVER != 0 { Reason::Handover } else { reason }
}

/// A reset is never answered by a reset.
#[inline(always)]
fn unless_reset(tcp: &Tcp, reason: Reason) -> Reason {
    if tcp.has(RST) { Reason::StrayReset } else { reason }
}

#[inline(always)]
fn choose<V: Family, F: Frame>(
    frame: &F,
    ifindex: u32,
    settings: &'static Settings,
    service: &Service,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    work.quoted = 0;
    if service.mode != MODE_NAT {
        return dsr::choose::<V>(settings, service, F::AT_TC, ifindex, work).map(|_| ());
    }
    let now = now(settings, ifindex);
    work.rule = rule::NAT;
    let opens = nat::from_client::<V, F>(&now, frame, service, work)?;
    if opens == FromClient::Known {
        return Ok(());
    }
    let owner = select::owner(settings, service, work).ok_or(Reason::NoBackend)?;
    ports::open::<V, F>(&now, frame, &owner, opens == FromClient::OpensAgain, work)
}

/// A packet without options or extension headers of a client to a DSR service, sent on: what nearly
/// all packets of such a service are. `None`: it takes a longer look.
#[inline(always)]
pub fn quick<V: Family, F: Frame + EbpfContext>(
    frame: &F,
    settings: &Settings,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Option<Reason> {
    let ip = ip_header::<V, F>(frame, L3)?;
    let (src, dst) = V::addresses(&ip);
    if !maps::may_be_known(&dst) {
        return (settings.flags & Settings::FLAG_KEEP_SOURCE == 0).then_some(Reason::NotVip);
    }
    work.from.src = src;
    work.from.dst = dst;
    parse::plain_tcp::<V, F>(frame, &ip, work)?;
    let service = service::find::<V>(&dst, work.from.dst_port_be)?;
    if service.mode == MODE_NAT {
        return None;
    }
    work.stats = service.stats;
    work.quoted = 0;
    Some(match dsr::choose::<V>(settings, service, F::AT_TC, ifindex, work) {
        Ok(backend) => forward::dsr_at_xdp::<V, F>(frame, settings, backend, ifindex, work),
        Err(reason) => unless_reset(&work.tcp, reason),
    })
}

/// A packet to a SNAT address, or from a backend that keeps the client's: an answer, or the node's
/// own.
#[inline(always)]
pub fn from_backend<V: Family, F: Frame>(
    frame: &F,
    ifindex: u32,
    settings: &'static Settings,
    keeps: bool,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    work.transport = V::walk(frame, L3).map_err(|_| Reason::NotVip)?;
    if work.transport.protocol == V::ICMP {
        return icmp::to_snat::<V, F>(frame, work);
    }
    if work.transport.protocol != PROTOCOL_TCP {
        return Err(Reason::NotVip);
    }
    parse::tcp::<V, F>(frame, work).map_err(|_| Reason::NotVip)?;
    if !keeps && !settings.ports.contains(u16::from_be(work.from.dst_port_be)) {
        return Err(Reason::NotVip);
    }
    answer::<V, F>(frame, ifindex, settings, work)
}

/// A TCP packet that may be a backend's answer; `NotVip` or `Handover` if no flow knows it.
#[inline(never)]
fn answer<V: Family, F: Frame>(
    frame: &F,
    ifindex: u32,
    settings: &'static Settings,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    match nat::from_backend::<V, F>(&now(settings, ifindex), frame, work) {
        Ok(true) => {
            work.rule = rule::NAT;
            Ok(())
        }
        Ok(false) => Err(unknown(settings, Reason::NotVip)),
        Err(reason) => Err(unless_reset(&work.tcp, reason)),
    }
}

#[inline(always)]
fn now(settings: &'static Settings, ifindex: u32) -> Now {
    // SAFETY: a helper without arguments.
    Now { settings, ifindex, time_ns: unsafe { bpf_ktime_get_boot_ns() } }
}
