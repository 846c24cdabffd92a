//! What differs between IPv4 and IPv6; everything else is written once, over this.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        __be32, bpf_fib_lookup, bpf_fib_lookup__bindgen_ty_3 as FibSrc, bpf_fib_lookup__bindgen_ty_4 as FibDst,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1 as NextHop,
    },
    btf_maps::lpm_trie::Key,
};
use lb_common::{
    checksum::Delta,
    flow::{Addr, V4Addr, V6Addr},
    service::{Service, VipKey},
    verdict::Reason,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    icmp,
    maps::{self, Established, HalfOpen, NatEstablished, NatHalfOpen, Seen},
    mss,
    packet::{Frame, Header, header},
    parse::{self, Transport},
    service::{self, Remembered},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An address family: its header, its maps, its part of the kernel's structures.
pub trait Family: 'static {
    type Addr: Addr + 'static;
    /// The fixed part of its header.
    type Header;
    /// Its ICMP's protocol number.
    const ICMP: u8;
    /// Whether a checksum guards the IP header, and whether addresses count in ICMP's.
    const IS_V4: bool;
    /// Offsets in the fixed header.
    const SRC: usize;
    const DST: usize;
    const TTL: usize;

    /// Source and destination.
    fn addresses(ip: &Header<Self::Header>) -> (Self::Addr, Self::Addr);
    fn set_addresses(ip: &Header<Self::Header>, src: Self::Addr, dst: Self::Addr);
    fn ttl(ip: &Header<Self::Header>) -> u8;
    /// DSCP and ECN.
    fn traffic_class(ip: &Header<Self::Header>) -> u8;
    fn set_traffic_class(ip: &Header<Self::Header>, class: u8);
    /// The length of a packet that is TCP right behind this header, no fragment and without
    /// options; `None` for any other.
    fn plain_tcp_len(ip: &Header<Self::Header>) -> Option<usize>;
    /// Checks the header at `l3` and finds the transport header behind it.
    fn walk<F: Frame>(frame: &F, l3: usize) -> Result<Transport, Reason>;

    /// The bits of `lb_common::service::address`; 0 for a stranger.
    fn address_bits(address: &Self::Addr) -> u32;
    fn service(key: &VipKey<Self::Addr>) -> Option<&'static Service>;
    /// The most bytes that fit into the tunnel through which `vip` is reached: see [`crate::mss`].
    fn tunnel_room(vip: &Self::Addr) -> Option<u32>;
    fn set_tunnel_room(vip: &Self::Addr, room: u32);
    /// The place of [`crate::service`] with this number.
    fn remembered(place: u32) -> Option<*mut Remembered<Self::Addr>>;
    fn nat_established() -> &'static NatEstablished<Self::Addr>;
    fn nat_half_open() -> &'static NatHalfOpen<Self::Addr>;
    fn established() -> &'static Established<Self::Addr>;
    fn half_open() -> &'static HalfOpen<Self::Addr>;
    fn seen() -> &'static Seen<Self::Addr>;
    /// Whether `address` may send this node encapsulated packets.
    fn is_peer(address: Self::Addr) -> bool;

    fn set_fib(params: &mut bpf_fib_lookup, src: Self::Addr, dst: Self::Addr);
    /// After a look-up: the next hop.
    fn fib_next_hop(params: &bpf_fib_lookup) -> Self::Addr;
    fn neighbour(address: Self::Addr) -> bpf_redir_neigh;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    type Addr = V4Addr;
    type Header = Ipv4Hdr;
    const ICMP: u8 = parse::PROTOCOL_ICMP;
    const IS_V4: bool = true;
    const SRC: usize = offset_of!(Ipv4Hdr, src_addr);
    const DST: usize = offset_of!(Ipv4Hdr, dst_addr);
    const TTL: usize = offset_of!(Ipv4Hdr, ttl);

    #[inline(always)]
    fn addresses(ip: &Header<Ipv4Hdr>) -> (V4Addr, V4Addr) {
        (ip.u32::<{ Self::SRC }>(), ip.u32::<{ Self::DST }>())
    }

    #[inline(always)]
    fn set_addresses(ip: &Header<Ipv4Hdr>, src: V4Addr, dst: V4Addr) {
        ip.set::<u32, { Self::SRC }>(src);
        ip.set::<u32, { Self::DST }>(dst);
    }

    #[inline(always)]
    fn ttl(ip: &Header<Ipv4Hdr>) -> u8 {
        ip.u8::<{ Self::TTL }>()
    }

    #[inline(always)]
    fn traffic_class(ip: &Header<Ipv4Hdr>) -> u8 {
        ip.u8::<{ offset_of!(Ipv4Hdr, tos) }>()
    }

    #[inline(always)]
    fn set_traffic_class(ip: &Header<Ipv4Hdr>, class: u8) {
        // The word of version, length and class.
        let old = ip.u16::<0>();
        ip.set::<u8, { offset_of!(Ipv4Hdr, tos) }>(class);
        icmp::apply_v4_checksum(ip, Delta::new().replace16(old, ip.u16::<0>()));
    }

    #[inline(always)]
    fn plain_tcp_len(ip: &Header<Ipv4Hdr>) -> Option<usize> {
        const VERSION_AND_LENGTH: u8 = 0x45;
        let is_plain = ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() == VERSION_AND_LENGTH
            && ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>() == parse::PROTOCOL_TCP
            && ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fff_u16.to_be() == 0;
        is_plain.then_some(u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as usize)
    }

    #[inline(always)]
    fn walk<F: Frame>(frame: &F, l3: usize) -> Result<Transport, Reason> {
        parse::ipv4(frame, l3)
    }

    #[inline(always)]
    fn address_bits(address: &V4Addr) -> u32 {
        // SAFETY: the value is a word that is read at once; entries of this map are replaced whole.
        unsafe { maps::ADDRESSES_V4.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service(key: &VipKey<V4Addr>) -> Option<&'static Service> {
        // SAFETY: RCU keeps the entry until this program returns, and entries are replaced whole.
        unsafe { maps::SERVICES_V4.get(key) }
    }

    #[inline(always)]
    fn tunnel_room(vip: &V4Addr) -> Option<u32> {
        // SAFETY: a word that is read at once.
        unsafe { mss::TUNNELLED_V4.get(vip) }.copied()
    }

    #[inline(always)]
    fn set_tunnel_room(vip: &V4Addr, room: u32) {
        // Without it the client is told by ICMP.
        let _is_in = mss::TUNNELLED_V4.insert(vip, room, 0).is_ok();
    }

    #[inline(always)]
    fn remembered(place: u32) -> Option<*mut Remembered<V4Addr>> {
        service::REMEMBERED_V4.get_ptr_mut(place)
    }

    #[inline(always)]
    fn nat_established() -> &'static NatEstablished<V4Addr> {
        &maps::NAT_ESTABLISHED_V4
    }

    #[inline(always)]
    fn nat_half_open() -> &'static NatHalfOpen<V4Addr> {
        &maps::NAT_HALF_OPEN_V4
    }

    #[inline(always)]
    fn established() -> &'static Established<V4Addr> {
        &maps::ESTABLISHED_V4
    }

    #[inline(always)]
    fn half_open() -> &'static HalfOpen<V4Addr> {
        &maps::HALF_OPEN_V4
    }

    #[inline(always)]
    fn seen() -> &'static Seen<V4Addr> {
        &maps::SEEN_V4
    }

    #[inline(always)]
    fn is_peer(address: V4Addr) -> bool {
        maps::PEERS_V4.get(&Key::new(32, address)).is_some()
    }

    #[inline(always)]
    fn set_fib(params: &mut bpf_fib_lookup, src: V4Addr, dst: V4Addr) {
        params.family = AF_INET;
        params.__bindgen_anon_3 = FibSrc { ipv4_src: src as __be32 };
        params.__bindgen_anon_4 = FibDst { ipv4_dst: dst as __be32 };
    }

    #[inline(always)]
    fn fib_next_hop(params: &bpf_fib_lookup) -> V4Addr {
        // SAFETY: every bit pattern is an address, and the union was filled whole.
        unsafe { params.__bindgen_anon_4.ipv4_dst }
    }

    #[inline(always)]
    fn neighbour(address: V4Addr) -> bpf_redir_neigh {
        let mut words = NextHop { ipv6_nh: [0; 4] };
        words.ipv4_nh = address;
        bpf_redir_neigh { nh_family: AF_INET as u32, __bindgen_anon_1: words }
    }
}

impl Family for V6 {
    type Addr = V6Addr;
    type Header = Ipv6Hdr;
    const ICMP: u8 = parse::PROTOCOL_ICMPV6;
    const IS_V4: bool = false;
    const SRC: usize = offset_of!(Ipv6Hdr, src_addr);
    const DST: usize = offset_of!(Ipv6Hdr, dst_addr);
    const TTL: usize = offset_of!(Ipv6Hdr, hop_limit);

    #[inline(always)]
    fn addresses(ip: &Header<Ipv6Hdr>) -> (V6Addr, V6Addr) {
        (ip.words::<{ Self::SRC }>(), ip.words::<{ Self::DST }>())
    }

    #[inline(always)]
    fn set_addresses(ip: &Header<Ipv6Hdr>, src: V6Addr, dst: V6Addr) {
        ip.set::<[u32; 4], { Self::SRC }>(src);
        ip.set::<[u32; 4], { Self::DST }>(dst);
    }

    #[inline(always)]
    fn ttl(ip: &Header<Ipv6Hdr>) -> u8 {
        ip.u8::<{ Self::TTL }>()
    }

    #[inline(always)]
    fn traffic_class(ip: &Header<Ipv6Hdr>) -> u8 {
        (u16::from_be(ip.u16::<0>()) >> 4) as u8
    }

    #[inline(always)]
    fn set_traffic_class(ip: &Header<Ipv6Hdr>, class: u8) {
        let rest = u16::from_be(ip.u16::<0>()) & 0xf00f;
        ip.set::<u16, 0>((rest | (class as u16) << 4).to_be());
    }

    #[inline(always)]
    fn plain_tcp_len(ip: &Header<Ipv6Hdr>) -> Option<usize> {
        let is_plain = ip.u8::<{ offset_of!(Ipv6Hdr, vcf) }>() >> 4 == 6
            && ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() == parse::PROTOCOL_TCP;
        let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>());
        is_plain.then_some((payload as usize).wrapping_add(Ipv6Hdr::LEN))
    }

    #[inline(always)]
    fn walk<F: Frame>(frame: &F, l3: usize) -> Result<Transport, Reason> {
        parse::ipv6(frame, l3)
    }

    #[inline(always)]
    fn address_bits(address: &V6Addr) -> u32 {
        // SAFETY: as for IPv4.
        unsafe { maps::ADDRESSES_V6.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service(key: &VipKey<V6Addr>) -> Option<&'static Service> {
        // SAFETY: as for IPv4.
        unsafe { maps::SERVICES_V6.get(key) }
    }

    #[inline(always)]
    fn tunnel_room(vip: &V6Addr) -> Option<u32> {
        // SAFETY: a word that is read at once.
        unsafe { mss::TUNNELLED_V6.get(vip) }.copied()
    }

    #[inline(always)]
    fn set_tunnel_room(vip: &V6Addr, room: u32) {
        // Without it the client is told by ICMP.
        let _is_in = mss::TUNNELLED_V6.insert(vip, room, 0).is_ok();
    }

    #[inline(always)]
    fn remembered(place: u32) -> Option<*mut Remembered<V6Addr>> {
        service::REMEMBERED_V6.get_ptr_mut(place)
    }

    #[inline(always)]
    fn nat_established() -> &'static NatEstablished<V6Addr> {
        &maps::NAT_ESTABLISHED_V6
    }

    #[inline(always)]
    fn nat_half_open() -> &'static NatHalfOpen<V6Addr> {
        &maps::NAT_HALF_OPEN_V6
    }

    #[inline(always)]
    fn established() -> &'static Established<V6Addr> {
        &maps::ESTABLISHED_V6
    }

    #[inline(always)]
    fn half_open() -> &'static HalfOpen<V6Addr> {
        &maps::HALF_OPEN_V6
    }

    #[inline(always)]
    fn seen() -> &'static Seen<V6Addr> {
        &maps::SEEN_V6
    }

    #[inline(always)]
    fn is_peer(address: V6Addr) -> bool {
        maps::PEERS_V6.get(&Key::new(128, address)).is_some()
    }

    #[inline(always)]
    fn set_fib(params: &mut bpf_fib_lookup, src: V6Addr, dst: V6Addr) {
        params.family = AF_INET6;
        params.__bindgen_anon_3 = FibSrc { ipv6_src: src };
        params.__bindgen_anon_4 = FibDst { ipv6_dst: dst };
    }

    #[inline(always)]
    fn fib_next_hop(params: &bpf_fib_lookup) -> V6Addr {
        // SAFETY: as for IPv4.
        unsafe { params.__bindgen_anon_4.ipv6_dst }
    }

    #[inline(always)]
    fn neighbour(address: V6Addr) -> bpf_redir_neigh {
        bpf_redir_neigh { nh_family: AF_INET6 as u32, __bindgen_anon_1: NextHop { ipv6_nh: address } }
    }
}

/// The fixed header at `l3`.
#[inline(always)]
pub fn ip_header<V: Family, F: Frame>(frame: &F, l3: usize) -> Option<Header<V::Header>> {
    header::<V::Header, F>(frame, l3)
}
