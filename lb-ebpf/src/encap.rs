//! Sending a packet of a DSR service on: with another destination MAC, or behind another IP header
//! (RFC 2003, RFC 2473).

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{bpf_check_mtu, bpf_skb_adjust_room, bpf_xdp_adjust_head},
    programs::TcContext,
};
use lb_common::{
    backend::{Backend, WAY_IPIP_V4, WAY_IPIP_V6},
    checksum::fold,
    flow::Addr,
    settings::Settings,
    verdict::Reason,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    family::{Family, ip_header},
    hop::{self, Hop},
    packet::{Frame, Header, header},
    parse::{ETHER_IPV4, ETHER_IPV6, L3},
    rewrite,
    work::{Via, Work},
};

/// IPPROTO_IPIP and IPPROTO_IPV6: what is in a tunnel.
pub const PROTOCOL_IPV4: u8 = 4;
pub const PROTOCOL_IPV6: u8 = 41;

const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Sends the packet in `work` to `backend`, its own, at XDP; `work.out` says how it leaves.
#[inline(always)]
pub fn at_xdp<V: Family, F: Frame + EbpfContext>(
    frame: &F,
    settings: &Settings,
    backend: &'static Backend,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    let ip = ip_header::<V, F>(frame, L3).ok_or(Reason::Rewrite)?;
    if V::ttl(&ip) <= 1 {
        return Err(Reason::TtlExpired);
    }
    let class = V::traffic_class(&ip);
    let hop = hop::hop::<V, F>(frame, work.backend, backend, ifindex)?;
    let len = work.transport.end.wrapping_sub(L3) as u32;
    if work.via == Via::DsrL2 {
        if hop.mtu != 0 && len > hop.mtu {
            // TC knows whether it is a super-packet that will be cut.
            return Err(Reason::NoXdpWayOut);
        }
        work.out = hop.out(ifindex).ok_or(Reason::NoXdpWayOut)?;
        rewrite::age::<V, F>(frame, L3).ok_or(Reason::Rewrite)?;
        set_macs(&header::<EthHdr, F>(frame, 0).ok_or(Reason::Rewrite)?, hop);
    } else {
        let more = overhead(backend);
        if hop.mtu != 0 && len.wrapping_add(more) > hop.mtu {
            if is_of_several(frame, len) {
                return Err(Reason::NoXdpWayOut);
            }
            work.mtu = hop.mtu.wrapping_sub(more);
            // An ICMP error is never answered by one.
            return Err(if work.quoted == 0 { Reason::PacketTooBig } else { Reason::TooBig });
        }
        work.out = hop.out(ifindex).ok_or(Reason::NoXdpWayOut)?;
        rewrite::age::<V, F>(frame, L3).ok_or(Reason::Rewrite)?;
        // SAFETY: the context is this program's.
        if unsafe { bpf_xdp_adjust_head(frame.as_ptr().cast(), (more as i32).wrapping_neg()) } != 0 {
            return Err(Reason::Rewrite);
        }
        let outer = Outer { backend, settings, hash: work.hash as u32, len: len as u16, class };
        if backend.way == WAY_IPIP_V4 {
            let whole = header::<[u8; EthHdr::LEN + Ipv4Hdr::LEN], F>(frame, 0).ok_or(Reason::Rewrite)?;
            whole.set::<[u32; 5], { EthHdr::LEN }>(outer.v4::<V>());
            whole.set::<u16, ETHER_TYPE>(ETHER_IPV4);
            set_macs(&whole, hop);
        } else {
            let whole = header::<[u8; EthHdr::LEN + Ipv6Hdr::LEN], F>(frame, 0).ok_or(Reason::Rewrite)?;
            whole.set::<[u32; 10], { EthHdr::LEN }>(outer.v6::<V>());
            whole.set::<u16, ETHER_TYPE>(ETHER_IPV6);
            set_macs(&whole, hop);
        }
    }
    Ok(())
}

/// Bytes of the header that a tunnel to this backend takes.
#[inline(always)]
pub const fn overhead(backend: &Backend) -> u32 {
    if backend.way == WAY_IPIP_V4 { Ipv4Hdr::LEN as u32 } else { Ipv6Hdr::LEN as u32 }
}

/// Whether an IP packet of `len` bytes is more than the interface that it came through lets in: GRO
/// has made it of several, which generic XDP sees as one. TC knows how they will be cut.
#[inline(always)]
fn is_of_several<C: EbpfContext>(context: &C, len: u32) -> bool {
    let mut mtu = 0_u32;
    // SAFETY: the context is this program's; 0 is the interface of the packet.
    unsafe { bpf_check_mtu(context.as_ptr(), 0, &raw mut mtu, 0, 0) };
    mtu != 0 && len > mtu
}

const ETHER_TYPE: usize = offset_of!(EthHdr, ether_type);

/// Sets the MAC addresses of a frame that begins with `start`.
#[inline(always)]
fn set_macs<T>(start: &Header<T>, hop: &Hop) {
    let [a, b, c] = hop.macs;
    start.set::<u32, 0>(a);
    start.set::<u32, 4>(b);
    start.set::<u32, 8>(c);
}

/// Puts the outer header on a socket buffer.
#[inline(always)]
pub fn by_helpers<V: Family>(
    skb: &TcContext,
    backend: &Backend,
    settings: &Settings,
    class: u8,
    work: &Work<V::Addr>,
) -> Option<()> {
    let len = work.transport.end.wrapping_sub(L3) as u16;
    let outer = Outer { backend, settings, hash: work.hash as u32, len, class };
    let room = overhead(backend) as i32;
    let flag = if backend.way == WAY_IPIP_V4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
    // SAFETY: the context is this program's. The kernel makes the segments of a super-packet
    // smaller by as much.
    if unsafe { bpf_skb_adjust_room(skb.as_ptr().cast(), room, BPF_ADJ_ROOM_MAC, flag as u64) } != 0 {
        return None;
    }
    match backend.way {
        WAY_IPIP_V4 => skb.store(L3, &outer.v4::<V>(), 0).ok()?,
        _ => skb.store(L3, &outer.v6::<V>(), 0).ok()?,
    }
    let ether_type_be = if backend.way == WAY_IPIP_V6 { ETHER_IPV6 } else { ETHER_IPV4 };
    skb.store(ETHER_TYPE, &ether_type_be, 0).ok()
}

/// What an outer header is made of.
struct Outer<'a> {
    backend: &'a Backend,
    settings: &'a Settings,
    hash: u32,
    /// Of the inner packet.
    len: u16,
    /// DSCP and ECN of the inner packet (RFC 2983, section 3; RFC 6040, section 4.1).
    class: u8,
}

impl Outer<'_> {
    /// An IPv4 header, its words as they lie in memory.
    #[inline(always)]
    fn v4<V: Family>(&self) -> [u32; 5] {
        let len = self.len.wrapping_add(Ipv4Hdr::LEN as u16).to_be();
        let protocol = if V::IS_V4 { PROTOCOL_IPV4 } else { PROTOCOL_IPV6 };
        let [length_hi, length_lo] = len.to_ne_bytes();
        let [flags_hi, flags_lo] = DONT_FRAGMENT.to_ne_bytes();
        let first = u32::from_ne_bytes([0x45, self.class, length_hi, length_lo]);
        let second = u32::from_ne_bytes([0, 0, flags_hi, flags_lo]);
        let third = u32::from_ne_bytes([TTL, protocol, 0, 0]);
        let vary = self.settings.vary_source_v4;
        let src = u32::from_any(&self.backend.tunnel_source) & !vary | self.hash & vary;
        let dst = u32::from_any(&self.backend.tunnel);
        let sum = [first, second, third, src, dst].into_iter().fold(0_u64, |sum, word| sum.wrapping_add(word as u64));
        let [check_hi, check_lo] = (!fold(sum)).to_ne_bytes();
        [first, second, u32::from_ne_bytes([TTL, protocol, check_hi, check_lo]), src, dst]
    }

    /// An IPv6 header, its words as they lie in memory. Its flow label carries the flow's entropy
    /// (RFC 6438).
    #[inline(always)]
    fn v6<V: Family>(&self) -> [u32; 10] {
        let protocol = if V::IS_V4 { PROTOCOL_IPV4 } else { PROTOCOL_IPV6 };
        let first = (6 << 28 | (self.class as u32) << 20 | self.hash & 0xf_ffff).to_be();
        let [length_hi, length_lo] = self.len.to_be_bytes();
        let second = u32::from_ne_bytes([length_hi, length_lo, protocol, TTL]);
        let [a, b, c, d] = self.backend.tunnel_source;
        let [e, f, g, h] = self.backend.tunnel;
        let vary = self.settings.vary_source_v6;
        [first, second, a, b, c, d & !vary | self.hash & vary, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use lb_common::flow::any_addr;

    fn settings(vary_v4: u32, vary_v6: u32) -> Settings {
        Settings {
            hash_key: lb_common::hash::HashKey::from_seed([1; 16]),
            nat_timeouts: lb_common::nat::NatTimeouts { half_open_ns: 1, established_ns: 1, closing_ns: 1 },
            ports: lb_common::ports::PortPool::new([(1, 2)], 1),
            flags: 0,
            layout: 0,
            vary_source_v4: vary_v4,
            vary_source_v6: vary_v6,
        }
    }

    fn backend(way: u8, source: &str, tunnel: &str) -> Backend {
        Backend {
            way,
            tunnel: any_addr(tunnel.parse().unwrap()),
            tunnel_source: any_addr(source.parse().unwrap()),
            ..Backend::FREE
        }
    }

    fn bytes<const N: usize>(words: [u32; N]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn outer_ipv4_header_is_what_an_independent_parser_reads() {
        let (settings, backend) = (settings(0, 0), backend(WAY_IPIP_V4, "10.0.0.1", "10.9.0.11"));
        let outer = Outer { backend: &backend, settings: &settings, hash: 0x1234_5678, len: 1000, class: 0xb9 };
        for (words, protocol) in [(outer.v4::<V4>(), 4), (outer.v4::<V6>(), 41)] {
            let bytes = bytes(words);
            let (header, rest) = etherparse::Ipv4Header::from_slice(&bytes).unwrap();
            assert!(rest.is_empty());
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.source, header.destination), ([10, 0, 0, 1], [10, 9, 0, 11]));
            assert_eq!((header.total_len, header.time_to_live, header.protocol.0), (1020, 64, protocol));
            assert_eq!(((header.dscp.value() << 2) | header.ecn.value(), header.dont_fragment), (0xb9, true));
        }
    }

    #[test]
    fn outer_ipv6_header_is_what_an_independent_parser_reads() {
        let (settings, backend) = (settings(0, 0), backend(WAY_IPIP_V6, "fd00::1", "fd09::11"));
        let outer = Outer { backend: &backend, settings: &settings, hash: 0xfff1_2345, len: 1000, class: 0xb9 };
        for (words, protocol) in [(outer.v6::<V4>(), 4), (outer.v6::<V6>(), 41)] {
            let bytes = bytes(words);
            let (header, rest) = etherparse::Ipv6Header::from_slice(&bytes).unwrap();
            assert!(rest.is_empty());
            assert_eq!((header.payload_length, header.next_header.0, header.hop_limit), (1000, protocol, 64));
            assert_eq!((header.traffic_class, header.flow_label.value()), (0xb9, 0x1_2345));
            assert_eq!(header.source_addr(), "fd00::1".parse::<std::net::Ipv6Addr>().unwrap());
            assert_eq!(header.destination_addr(), "fd09::11".parse::<std::net::Ipv6Addr>().unwrap());
        }
    }

    #[test]
    fn source_varies_inside_its_prefix_alone() {
        let settings = settings(0x0000_ffff_u32.to_be(), 0x00ff_ffff_u32.to_be());
        let backend = backend(WAY_IPIP_V4, "10.77.0.0", "10.9.0.11");
        let outer = Outer { backend: &backend, settings: &settings, hash: 0x1234_5678_u32.to_be(), len: 40, class: 0 };
        let header = etherparse::Ipv4Header::from_slice(&bytes(outer.v4::<V4>())).unwrap().0;
        assert_eq!(header.source, [10, 77, 0x56, 0x78]);
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
}
