//! Packets that Weir answers itself: resets and echo replies, made of the packet that asked, sent
//! back the way it came.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_jiffies64, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::btf_map,
};
use lb_common::{
    checksum::{Delta, fold},
    flow::Addr,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    family::{Family, ip_header},
    icmp::{self, ICMP_CHECKSUM, ICMP_TYPE, IcmpHeader},
    packet::{Frame, header},
    parse::{ACK, L3, PROTOCOL_TCP, RST},
    work::Work,
};

const TTL: u8 = 64;
/// A data offset of five words.
const TCP_PLAIN: u8 = 5 << 4;

/// Turns a TCP packet into the reset that answers it (RFC 9293, section 3.10.7.1). `None`: the
/// kernel refused.
#[inline(never)]
pub fn reset<V: Family, F: Frame + EbpfContext>(frame: &F, work: &Work<V::Addr>) -> Option<()> {
    let (tcp, flow) = (&work.tcp, &work.from);
    let (src, dst) = (flow.src, flow.dst);
    // With an acknowledgement the reset takes its number; without one it acknowledges the segment.
    let (sequence, acknowledgement, flags) =
        if tcp.has(ACK) { (tcp.acknowledgement, 0, RST) } else { (0, tcp.sequence_end(), RST | ACK) };
    let header_len = if V::IS_V4 { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN };
    let l4 = L3.wrapping_add(header_len);
    let len = l4.wrapping_add(TcpHdr::LEN);
    let shrink = (len as i32).wrapping_sub(frame.whole_len() as i32);
    // SAFETY: the context is this program's. The packet was no shorter: it held these headers.
    if unsafe { bpf_xdp_adjust_tail(frame.as_ptr().cast(), shrink) } != 0 {
        return None;
    }

    turn_ethernet(frame)?;
    write_ip::<V, F>(frame, L3, dst, src, PROTOCOL_TCP, TcpHdr::LEN as u16)?;
    let tcp = header::<TcpHdr, F>(frame, l4)?;
    tcp.set::<u16, { offset_of!(TcpHdr, source) }>(flow.dst_port_be);
    tcp.set::<u16, { offset_of!(TcpHdr, dest) }>(flow.src_port_be);
    tcp.set::<u32, { offset_of!(TcpHdr, seq) }>(sequence.to_be());
    tcp.set::<u32, { offset_of!(TcpHdr, ack_seq) }>(acknowledgement.to_be());
    tcp.set::<[u8; 2], { offset_of!(TcpHdr, _bitfield_1) }>([TCP_PLAIN, flags]);
    tcp.set::<u32, { offset_of!(TcpHdr, window) }>(0);
    tcp.set::<u16, { offset_of!(TcpHdr, urg_ptr) }>(0);
    let sum = src
        .sum()
        .wrapping_add(dst.sum())
        .wrapping_add(u16::to_be(PROTOCOL_TCP as u16) as u64)
        .wrapping_add(u16::to_be(TcpHdr::LEN as u16) as u64)
        .wrapping_add(flow.src_port_be as u64)
        .wrapping_add(flow.dst_port_be as u64)
        .wrapping_add(sequence.to_be() as u64)
        .wrapping_add(acknowledgement.to_be() as u64)
        .wrapping_add(u16::from_ne_bytes([TCP_PLAIN, flags]) as u64);
    tcp.set::<u16, { offset_of!(TcpHdr, check) }>(!fold(sum));
    Some(())
}

/// A plain IP header before `payload` bytes of `protocol`.
#[inline(always)]
fn write_ip<V: Family, F: Frame>(
    frame: &F,
    l3: usize,
    src: V::Addr,
    dst: V::Addr,
    protocol: u8,
    payload: u16,
) -> Option<()> {
    if V::IS_V4 {
        let ip = header::<Ipv4Hdr, F>(frame, l3)?;
        let len = payload.wrapping_add(Ipv4Hdr::LEN as u16);
        const DONT_FRAGMENT: u16 = 0x4000;
        ip.set::<[u8; 2], 0>([0x45, 0]);
        ip.set::<u16, { offset_of!(Ipv4Hdr, tot_len) }>(len.to_be());
        ip.set::<u16, { offset_of!(Ipv4Hdr, id) }>(0);
        ip.set::<u16, { offset_of!(Ipv4Hdr, frags) }>(DONT_FRAGMENT.to_be());
        ip.set::<[u8; 2], { offset_of!(Ipv4Hdr, ttl) }>([TTL, protocol]);
        let sum = src
            .sum()
            .wrapping_add(dst.sum())
            .wrapping_add(u16::from_ne_bytes([0x45, 0]) as u64)
            .wrapping_add(len.to_be() as u64)
            .wrapping_add(DONT_FRAGMENT.to_be() as u64)
            .wrapping_add(u16::from_ne_bytes([TTL, protocol]) as u64);
        ip.set::<u16, { offset_of!(Ipv4Hdr, check) }>(!fold(sum));
    } else {
        let ip = header::<Ipv6Hdr, F>(frame, l3)?;
        ip.set::<[u8; 4], { offset_of!(Ipv6Hdr, vcf) }>([0x60, 0, 0, 0]);
        ip.set::<u16, { offset_of!(Ipv6Hdr, payload_len) }>(payload.to_be());
        ip.set::<[u8; 2], { offset_of!(Ipv6Hdr, next_hdr) }>([protocol, TTL]);
    }
    let ip = ip_header::<V, F>(frame, l3)?;
    V::set_addresses(&ip, src, dst);
    Some(())
}

/// Turns an echo request into its reply.
#[inline(never)]
pub fn echo<V: Family, F: Frame>(frame: &F, work: &Work<V::Addr>) -> Option<()> {
    turn_ethernet(frame)?;
    let ip = ip_header::<V, F>(frame, L3)?;
    let (src, dst) = V::addresses(&ip);
    // Sums don't mind the order of the addresses.
    V::set_addresses(&ip, dst, src);
    if V::IS_V4 {
        let ip = header::<Ipv4Hdr, F>(frame, L3)?;
        const WORD: usize = offset_of!(Ipv4Hdr, ttl);
        let old = ip.u16::<WORD>();
        ip.set::<u8, WORD>(TTL);
        let new = ip.u16::<WORD>();
        icmp::apply_v4_checksum(&ip, Delta::new().replace16(old, new));
    } else {
        header::<Ipv6Hdr, F>(frame, L3)?.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(TTL);
    }
    let icmp = header::<IcmpHeader, F>(frame, work.transport.offset)?;
    // The word of type and code.
    let old = icmp.u16::<ICMP_TYPE>();
    icmp.set::<u8, ICMP_TYPE>(if V::IS_V4 { 0 } else { 129 });
    let new = icmp.u16::<ICMP_TYPE>();
    icmp.set::<u16, ICMP_CHECKSUM>(Delta::new().replace16(old, new).apply(icmp.u16::<ICMP_CHECKSUM>()));
    Some(())
}

/// Bytes that are quoted of a packet that was too big: enough for its TCP header behind options or
/// extension headers.
const QUOTE: usize = 128;
/// Answers to packets that were too big, on each CPU within [`WINDOW_JIFFIES`].
const MAX_ANSWERS: u64 = 64;
const WINDOW_JIFFIES: u64 = 64;

/// How many were given since when.
#[repr(C)]
struct Answered {
    since_jiffies: u64,
    answers: u64,
}

#[btf_map]
static ANSWERED: PerCpuArray<Answered, 1> = PerCpuArray::new();

/// Whether one more answer to a packet that was too big may be given now.
#[inline(always)]
pub fn may_say_too_big() -> bool {
    let Some(answered) = ANSWERED.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU value: nobody else writes it while this program runs.
    let answered = unsafe { &mut *answered };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() };
    if now.wrapping_sub(answered.since_jiffies) >= WINDOW_JIFFIES {
        answered.since_jiffies = now;
        answered.answers = 0;
    }
    answered.answers = answered.answers.wrapping_add(1);
    answered.answers <= MAX_ANSWERS
}

/// Turns a packet into the answer that it is too big: fragmentation needed (RFC 1191, section 4) or
/// packet too big (RFC 4443, section 3.2), from the VIP. Whoever lets its packets be cut is told as
/// well: nobody here cuts them. `None`: the kernel refused.
#[inline(never)]
pub fn too_big<V: Family, F: Frame + EbpfContext>(frame: &F, work: &Work<V::Addr>) -> Option<()> {
    let header_len = size_of::<V::Header>();
    let grow = header_len.wrapping_add(size_of::<IcmpHeader>());
    let shrink = ((L3 + QUOTE) as i32).wrapping_sub(frame.whole_len() as i32);
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    let (src_mac, dst_mac) = (
        ethernet.bytes::<6, { offset_of!(EthHdr, src_addr) }>(),
        ethernet.bytes::<6, { offset_of!(EthHdr, dst_addr) }>(),
    );
    let ether_type = ethernet.u16::<{ offset_of!(EthHdr, ether_type) }>();
    // SAFETY: the context is this program's. What is too big for a tunnel is longer than a quote.
    if unsafe { bpf_xdp_adjust_tail(frame.as_ptr().cast(), shrink) } != 0
        // SAFETY: as above.
        || unsafe { bpf_xdp_adjust_head(frame.as_ptr().cast(), (grow as i32).wrapping_neg()) } != 0
    {
        return None;
    }
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    ethernet.set::<[u8; 6], { offset_of!(EthHdr, dst_addr) }>(src_mac);
    ethernet.set::<[u8; 6], { offset_of!(EthHdr, src_addr) }>(dst_mac);
    ethernet.set::<u16, { offset_of!(EthHdr, ether_type) }>(ether_type);
    let (src, dst) = (work.from.dst, work.from.src);
    let len = const { (size_of::<IcmpHeader>() + QUOTE) as u16 };
    write_ip::<V, F>(frame, L3, src, dst, V::ICMP, len)?;

    let quote = header::<[u8; QUOTE], F>(frame, L3.wrapping_add(grow))?;
    let icmp = header::<IcmpHeader, F>(frame, L3.wrapping_add(header_len))?;
    let mtu = if V::IS_V4 { work.mtu & 0xffff } else { work.mtu };
    let (kind, code) = if V::IS_V4 { (3, 4) } else { (2, 0) };
    icmp.set::<[u8; 4], 0>([kind, code, 0, 0]);
    icmp.set::<u32, 4>(mtu.to_be());
    let mut sum = (u16::from_ne_bytes([kind, code]) as u64).wrapping_add(mtu.to_be() as u64);
    if !V::IS_V4 {
        // ICMPv6 counts a pseudo header (RFC 4443, section 2.3).
        sum = sum
            .wrapping_add(src.sum())
            .wrapping_add(dst.sum())
            .wrapping_add(u16::to_be(V::ICMP as u16) as u64)
            .wrapping_add(len.to_be() as u64);
    }
    sum = sum.wrapping_add(quote.sum());
    icmp.set::<u16, ICMP_CHECKSUM>(!fold(sum));
    Some(())
}

#[inline(always)]
fn turn_ethernet<F: Frame>(frame: &F) -> Option<()> {
    const SRC: usize = offset_of!(EthHdr, src_addr);
    const DST: usize = offset_of!(EthHdr, dst_addr);
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    let src = ethernet.bytes::<6, SRC>();
    let dst = ethernet.bytes::<6, DST>();
    ethernet.set::<[u8; 6], SRC>(dst);
    ethernet.set::<[u8; 6], DST>(src);
    Some(())
}
