//! What becomes of a packet: the same for XDP and TC.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use lb_common::{
    backend::WAY_DSR_L2,
    flow::Addr,
    service::{MODE_NAT, Service, VipKey, address},
    settings::Settings,
    verdict::Reason,
};

use crate::{
    family::{Family, ip_header},
    icmp, maps,
    nat::{self, FromClient, Now},
    packet::Frame,
    parse::{self, L3, Link, PROTOCOL_TCP, RST, Tcp},
    ports, select,
    work::{Direction, Via, Work},
};

/// Decides for the packet behind `link`: where it goes is in `work` then. An error is a verdict that sends nothing on.
#[inline(never)]
pub fn decide<V: Family, F: Frame>(
    frame: &F,
    link: &Link,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    let ip = ip_header::<V, F>(frame, link.l3).ok_or(Reason::NotIp)?;
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
        return icmp::to_vip::<V, F>(frame, work);
    }
    if work.transport.protocol != PROTOCOL_TCP {
        return Err(Reason::NotServedProtocol);
    }
    parse::tcp::<V, F>(frame, work)?;
    let key = VipKey::tcp(work.from.dst, work.from.dst_port_be);
    let Some(service) = V::service(&key) else {
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
        maps::count_refused(service.stats);
        unless_reset(&work.tcp, reason)
    })
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
    if service.mode == MODE_NAT {
        let now = now(settings, ifindex);
        let opens = nat::from_client::<V, F>(&now, frame, service, work)?;
        if opens == FromClient::Known {
            return Ok(());
        }
        let owner = select::owner(settings, service, &work.from).ok_or(Reason::NoBackend)?;
        return ports::open::<V, F>(&now, frame, &owner, opens == FromClient::OpensAgain, work);
    }
    let owner = select::owner(settings, service, &work.from).ok_or(Reason::NoBackend)?;
    if owner.backend.way != WAY_DSR_L2 {
        return Err(Reason::NoBackend);
    }
    work.to = work.from.read();
    work.next = V::Addr::from_any(&owner.backend.address);
    work.backend = owner.index;
    work.via = Via::DsrL2;
    work.direction = Direction::ToBackend;
    work.quoted = 0;
    Ok(())
}

/// A packet to a SNAT address, or from a backend that keeps the client's: an answer, or the node's own.
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

/// A TCP packet that may be a backend's answer; `NotVip` if no flow knows it.
#[inline(never)]
fn answer<V: Family, F: Frame>(
    frame: &F,
    ifindex: u32,
    settings: &'static Settings,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    match nat::from_backend::<V, F>(&now(settings, ifindex), frame, work) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Reason::NotVip),
        Err(reason) => Err(unless_reset(&work.tcp, reason)),
    }
}

#[inline(always)]
fn now(settings: &'static Settings, ifindex: u32) -> Now {
    // SAFETY: a helper without arguments.
    Now { settings, ifindex, time_ns: unsafe { bpf_ktime_get_boot_ns() } }
}
