//! ICMP to an address of ours: echo, and errors that quote a packet of a flow, also if they quote
//! only eight bytes of its TCP.

use core::mem::offset_of;

use lb_common::{
    checksum::Delta,
    flow::{Addr, Flow},
    nat::NAT_FORWARD,
    service::{MODE_NAT, VipKey},
    settings::Settings,
    verdict::Reason,
};
use network_types::{icmp::Icmpv4Hdr, ip::Ipv4Hdr, ip::Ipv6Hdr};

use crate::{
    dsr,
    family::{Family, ip_header},
    maps::FlowTable,
    packet::{Frame, Header, header},
    parse::{ACK, PROTOCOL_TCP},
    work::{Direction, Via, Work},
};

/// Type, code, checksum and four bytes: the same in both families.
pub type IcmpHeader = Icmpv4Hdr;
pub const ICMP_TYPE: usize = offset_of!(IcmpHeader, type_);
pub const ICMP_CHECKSUM: usize = offset_of!(IcmpHeader, check);

#[derive(PartialEq, Eq)]
enum Message {
    Echo,
    Error,
    /// Neighbour and router discovery.
    Discovery,
    Other,
}

#[inline(always)]
fn message<V: Family>(kind: u8) -> Message {
    if V::IS_V4 {
        match kind {
            8 => Message::Echo,
            3 | 11 | 12 => Message::Error,
            _ => Message::Other,
        }
    } else {
        match kind {
            128 => Message::Echo,
            1..=4 => Message::Error,
            133..=137 => Message::Discovery,
            _ => Message::Other,
        }
    }
}

/// An ICMP message to a VIP.
#[inline(always)]
pub fn to_vip<V: Family, F: Frame>(
    frame: &F,
    settings: &Settings,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    let icmp = icmp_header(frame, work).ok_or(Reason::Malformed)?;
    match message::<V>(icmp.u8::<ICMP_TYPE>()) {
        Message::Echo => Err(Reason::Echo),
        Message::Discovery => Err(Reason::NodeIcmp),
        Message::Other => Err(Reason::NotServedProtocol),
        Message::Error => {
            work.quoted = quoted_flow::<V, F>(frame, work).ok_or(Reason::NotServedProtocol)?;
            if of_nat::<V>(work).is_some() { Ok(()) } else { of_dsr::<V, F>(settings, ifindex, work) }
        }
    }
}

/// The header of the message, if the packet holds it: padding behind a short packet is no message.
#[inline(always)]
fn icmp_header<A, F: Frame>(frame: &F, work: &Work<A>) -> Option<Header<IcmpHeader>> {
    let at = work.transport.offset;
    if at.wrapping_add(size_of::<IcmpHeader>()) > work.transport.end {
        return None;
    }
    header::<IcmpHeader, F>(frame, at)
}

/// An ICMP message to a SNAT address, or from a backend.
#[inline(always)]
pub fn to_snat<V: Family, F: Frame>(frame: &F, work: &mut Work<V::Addr>) -> Result<(), Reason> {
    let icmp = icmp_header(frame, work).ok_or(Reason::NotVip)?;
    if message::<V>(icmp.u8::<ICMP_TYPE>()) != Message::Error {
        return Err(Reason::NotVip);
    }
    work.quoted = quoted_flow::<V, F>(frame, work).ok_or(Reason::NotVip)?;
    of_nat::<V>(work).ok_or(Reason::NotVip)
}

/// Where the packet begins that an error quotes, if it was sent from the address that gets the
/// error; the flow that it answers is in `work.back`.
#[inline(always)]
fn quoted_flow<V: Family, F: Frame>(frame: &F, work: &mut Work<V::Addr>) -> Option<usize> {
    let quoted = work.transport.offset.wrapping_add(size_of::<IcmpHeader>());
    let ip = ip_header::<V, F>(frame, quoted)?;
    let (quoted_src, quoted_dst) = V::addresses(&ip);
    if quoted_src != work.from.dst {
        return None;
    }
    let quoted_tcp = quoted_transport::<V, F>(frame, quoted)?;
    let ports = header::<[u8; 8], F>(frame, quoted_tcp)?;
    if quoted_tcp.wrapping_add(8) > work.transport.end {
        return None;
    }
    // The flow whose answer is quoted: what comes from where the quoted packet went.
    work.back = Flow { src: quoted_dst, dst: quoted_src, src_port_be: ports.u16::<2>(), dst_port_be: ports.u16::<0>() };
    Some(quoted)
}

/// The way of an error about a flow of `nat`: to whoever sent the quoted packet to us.
#[inline(always)]
fn of_nat<V: Family>(work: &mut Work<V::Addr>) -> Option<()> {
    let entry = V::nat_established().find(&work.back).or_else(|| V::nat_half_open().find(&work.back))?;
    // SAFETY: RCU keeps the value until this program returns.
    let entry = unsafe { &*entry };
    work.to = entry.to.read();
    work.next = work.to.dst.read();
    work.backend = entry.backend;
    work.stats = entry.stats;
    work.via = Via::Nat;
    work.direction = if entry.flags & NAT_FORWARD != 0 { Direction::ToBackend } else { Direction::ToClient };
    Some(())
}

/// The way of an error about what a backend of a DSR service sent to a client: to that backend,
/// unchanged.
#[inline(always)]
fn of_dsr<V: Family, F: Frame>(settings: &Settings, ifindex: u32, work: &mut Work<V::Addr>) -> Result<(), Reason> {
    let key = VipKey::tcp(work.back.dst.read(), work.back.dst_port_be);
    let service = V::service(&key).filter(|service| service.mode != MODE_NAT).ok_or(Reason::NotServedProtocol)?;
    work.from = work.back.read();
    // In the middle of the connection.
    work.tcp.flags = ACK;
    work.stats = service.stats;
    match dsr::choose::<V>(settings, service, F::AT_TC, ifindex, work) {
        // Nobody is told about an error.
        Err(_) => Err(Reason::NotServedProtocol),
        Ok(_) => Ok(()),
    }
}

/// Where the TCP header of the quoted packet at `quoted` begins.
#[inline(always)]
fn quoted_transport<V: Family, F: Frame>(frame: &F, quoted: usize) -> Option<usize> {
    if V::IS_V4 {
        let ip = header::<Ipv4Hdr, F>(frame, quoted)?;
        let header_len = ((ip.u8::<0>() & 0xf) as usize) << 2;
        let is_tcp = ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>() == PROTOCOL_TCP;
        (is_tcp && header_len >= Ipv4Hdr::LEN).then_some(quoted.wrapping_add(header_len))
    } else {
        let ip = header::<Ipv6Hdr, F>(frame, quoted)?;
        (ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() == PROTOCOL_TCP).then_some(quoted.wrapping_add(Ipv6Hdr::LEN))
    }
}

/// Rewrites the outer addresses and the quoted packet; the error then comes from, and speaks of,
/// what its receiver knows. Returns `None` if the packet has become shorter meanwhile, which cannot
/// be.
#[inline(always)]
pub fn rewrite<V: Family, F: Frame>(frame: &F, l3: usize, work: &Work<V::Addr>) -> Option<()> {
    let to = &work.to;
    // The quoted packet went the other way.
    let inner = to.reversed();
    let inner_l4 = quoted_transport::<V, F>(frame, work.quoted)?;
    let ports = header::<[u8; 8], F>(frame, inner_l4)?;
    let mut delta =
        Delta::new().replace16(ports.u16::<0>(), inner.src_port_be).replace16(ports.u16::<2>(), inner.dst_port_be);
    ports.set::<u16, 0>(inner.src_port_be);
    ports.set::<u16, 2>(inner.dst_port_be);

    let quoted = ip_header::<V, F>(frame, work.quoted)?;
    let (old_src, old_dst) = V::addresses(&quoted);
    let moved = Delta::new().replace_addr(old_src, inner.src).replace_addr(old_dst, inner.dst);
    V::set_addresses(&quoted, inner.src, inner.dst);
    delta = delta.replace_addr(old_src, inner.src).replace_addr(old_dst, inner.dst);
    if V::IS_V4 {
        let quoted = header::<Ipv4Hdr, F>(frame, work.quoted)?;
        let (before, after) = apply_v4_checksum(&quoted, moved);
        delta = delta.replace16(before, after);
    }

    let outer = ip_header::<V, F>(frame, l3)?;
    let (old_src, old_dst) = V::addresses(&outer);
    let moved = Delta::new().replace_addr(old_src, to.src).replace_addr(old_dst, to.dst);
    V::set_addresses(&outer, to.src, to.dst);
    if V::IS_V4 {
        apply_v4_checksum(&header::<Ipv4Hdr, F>(frame, l3)?, moved);
    } else {
        // ICMPv6 counts the addresses (RFC 4443, section 2.3).
        delta = delta.replace_addr(old_src, to.src).replace_addr(old_dst, to.dst);
    }
    let icmp = header::<IcmpHeader, F>(frame, work.transport.offset)?;
    icmp.set::<u16, ICMP_CHECKSUM>(delta.apply(icmp.u16::<ICMP_CHECKSUM>()));
    Some(())
}

/// Updates the checksum of an IPv4 header; the one before and the one after.
#[inline(always)]
pub fn apply_v4_checksum(ip: &Header<Ipv4Hdr>, delta: Delta) -> (u16, u16) {
    const CHECK: usize = offset_of!(Ipv4Hdr, check);
    let before = ip.u16::<CHECK>();
    let after = delta.apply(before);
    ip.set::<u16, CHECK>(after);
    (before, after)
}
