//! Writing the new 5-tuple into a packet, its checksums kept right incrementally.

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_F_PSEUDO_HDR, programs::TcContext};
use lb_common::{
    checksum::{Delta, fold},
    flow::Flow,
};
use network_types::{ip::Ipv4Hdr, tcp::TcpHdr};

use crate::{
    family::{Family, ip_header},
    icmp,
    packet::{Frame, header},
};

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = offset_of!(TcpHdr, check);
const V4_CHECKSUM: usize = offset_of!(Ipv4Hdr, check);

/// Rewrites addresses and ports in place. `None` if the packet is shorter than it was when it was
/// read, which cannot be.
#[inline(always)]
pub fn in_place<V: Family, F: Frame>(
    frame: &F,
    l3: usize,
    l4: usize,
    from: &Flow<V::Addr>,
    to: &Flow<V::Addr>,
) -> Option<()> {
    let ip = ip_header::<V, F>(frame, l3)?;
    let addresses = Delta::new().replace_addr(from.src, to.src).replace_addr(from.dst, to.dst);
    V::set_addresses(&ip, to.src, to.dst);
    if V::IS_V4 {
        icmp::apply_v4_checksum(&header::<Ipv4Hdr, F>(frame, l3)?, addresses);
    }
    let tcp = header::<TcpHdr, F>(frame, l4)?;
    let all = addresses.replace16(from.src_port_be, to.src_port_be).replace16(from.dst_port_be, to.dst_port_be);
    tcp.set::<u16, { offset_of!(TcpHdr, source) }>(to.src_port_be);
    tcp.set::<u16, { offset_of!(TcpHdr, dest) }>(to.dst_port_be);
    tcp.set::<u16, TCP_CHECKSUM>(all.apply(tcp.u16::<TCP_CHECKSUM>()));
    Some(())
}

/// One less to live. `None` as above.
#[inline(always)]
pub fn age<V: Family, F: Frame>(frame: &F, l3: usize) -> Option<()> {
    if V::IS_V4 {
        let ip = header::<Ipv4Hdr, F>(frame, l3)?;
        let ttl = ip.u8::<{ offset_of!(Ipv4Hdr, ttl) }>();
        ip.set::<u8, { offset_of!(Ipv4Hdr, ttl) }>(ttl.wrapping_sub(1));
        // One less in the high byte of its word is one more there in the complement of the sum (RFC
        // 1141).
        let check = (ip.u16::<V4_CHECKSUM>() as u32).wrapping_add(0x0100_u16.to_be() as u32);
        ip.set::<u16, V4_CHECKSUM>(check.wrapping_add((check >= 0xffff) as u32) as u16);
    } else {
        let ip = header::<network_types::ip::Ipv6Hdr, F>(frame, l3)?;
        const HOP_LIMIT: usize = offset_of!(network_types::ip::Ipv6Hdr, hop_limit);
        ip.set::<u8, HOP_LIMIT>(ip.u8::<HOP_LIMIT>().wrapping_sub(1));
    }
    Some(())
}

/// The same as [`in_place`] for a socket buffer, whose checksum may be partial or of a
/// super-packet: the kernel's helpers know.
#[inline(always)]
pub fn by_helpers<V: Family>(
    skb: &TcContext,
    l3: usize,
    l4: usize,
    from: &Flow<V::Addr>,
    to: &Flow<V::Addr>,
) -> Option<()> {
    let difference = |delta: Delta| !delta.apply(0) as u64;
    let addresses = difference(Delta::new().replace_addr(from.src, to.src).replace_addr(from.dst, to.dst));
    let checksum = l4.wrapping_add(TCP_CHECKSUM);
    skb.l4_csum_replace(checksum, 0, addresses, BPF_F_PSEUDO_HDR as u64).ok()?;
    if V::IS_V4 {
        skb.l3_csum_replace(l3.wrapping_add(V4_CHECKSUM), 0, addresses, 0).ok()?;
    }
    skb.store(l3.wrapping_add(V::SRC), &to.src, 0).ok()?;
    skb.store(l3.wrapping_add(V::DST), &to.dst, 0).ok()?;
    let ports = |flow: &Flow<V::Addr>| fold((flow.src_port_be as u64).wrapping_add(flow.dst_port_be as u64));
    let ports = difference(Delta::new().replace16(ports(from), ports(to)));
    skb.l4_csum_replace(checksum, 0, ports, 0).ok()?;
    skb.store(l4, &[to.src_port_be, to.dst_port_be], 0).ok()
}

/// The same as [`age`], by the helpers.
#[inline(always)]
pub fn age_by_helpers<V: Family>(skb: &TcContext, l3: usize) -> Option<()> {
    let at = l3.wrapping_add(V::TTL);
    let ttl = skb.load::<u8>(at).ok()?;
    let aged = ttl.wrapping_sub(1);
    if V::IS_V4 {
        // The TTL is the first byte of its word.
        let word = |ttl: u8| u16::from_ne_bytes([ttl, 0]) as u64;
        skb.l3_csum_replace(l3.wrapping_add(V4_CHECKSUM), word(ttl), word(aged), 2).ok()?;
    }
    skb.store(at, &aged, 0).ok()
}
