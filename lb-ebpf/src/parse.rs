//! Ethernet, IP and TCP headers, each checked before it is believed.

use core::mem::offset_of;

use lb_common::verdict::Reason;
use network_types::{eth::EthHdr, ip::Ipv4Hdr, ip::Ipv6Hdr, tcp::TcpHdr};

use crate::{
    family::Family,
    packet::{Frame, Header, header},
    work::Work,
};

pub const ETHER_IPV4: u16 = 0x0800_u16.to_be();
pub const ETHER_IPV6: u16 = 0x86dd_u16.to_be();
const ETHER_VLAN: u16 = 0x8100_u16.to_be();
const ETHER_QINQ: u16 = 0x88a8_u16.to_be();

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are followed; more than these are counted and dropped.
pub const MAX_EXTENSIONS: u32 = 6;

/// Where the IP header begins in a frame without a VLAN tag; what carries a tag is never sent on.
pub const L3: usize = EthHdr::LEN;

/// What the link layer says.
pub struct Link {
    /// The type of what follows, in network order.
    pub ether_type_be: u16,
    /// Where it begins.
    pub l3: usize,
    pub tagged: bool,
}

/// Ethernet and up to two VLAN tags.
#[inline(always)]
pub fn link<F: Frame>(frame: &F) -> Option<Link> {
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    let mut link =
        Link { ether_type_be: ethernet.u16::<{ offset_of!(EthHdr, ether_type) }>(), l3: EthHdr::LEN, tagged: false };
    for _ in 0..2 {
        if link.ether_type_be != ETHER_VLAN && link.ether_type_be != ETHER_QINQ {
            break;
        }
        // The tag control information, then the next type.
        let tag = header::<[u8; 4], F>(frame, link.l3)?;
        link = Link { ether_type_be: tag.u16::<2>(), l3: link.l3.wrapping_add(4), tagged: true };
    }
    Some(link)
}

/// Where the transport header begins, and what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    pub offset: usize,
    pub protocol: u8,
    /// Behind the last byte of the IP packet.
    pub end: usize,
}

/// The end of an IP packet whose header at `l3` says `len` bytes, if the frame holds that much and
/// at least `least`. `field` is the length field that says so.
#[inline(always)]
fn packet_end<F: Frame>(frame: &F, l3: usize, field: u16, len: usize, least: usize) -> Result<usize, Reason> {
    let end = l3.wrapping_add(len);
    if F::AT_TC && field == 0 {
        // BIG TCP: a GRO super-packet above 64 KiB says zero.
        return Ok(frame.whole_len());
    }
    // The whole length takes a helper's call for packets of several buffers; the reachable part
    // mostly says enough.
    if len < least || (end > frame.reachable() && end > frame.whole_len()) {
        return Err(Reason::Malformed);
    }
    Ok(end)
}

/// Walks the IPv4 header at `l3`.
#[inline(always)]
pub fn ipv4<F: Frame>(frame: &F, l3: usize) -> Result<Transport, Reason> {
    let ip = header::<Ipv4Hdr, F>(frame, l3).ok_or(Reason::Malformed)?;
    let version_and_length = ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>();
    let header_len = ((version_and_length & 0xf) as usize) << 2;
    let len = u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>());
    if version_and_length >> 4 != 4 || header_len < Ipv4Hdr::LEN {
        return Err(Reason::Malformed);
    }
    let end = packet_end(frame, l3, len, len as usize, header_len)?;
    // More fragments, or an offset.
    if u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>()) & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    Ok(Transport { offset: l3.wrapping_add(header_len), protocol: ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>(), end })
}

/// Walks the IPv6 header at `l3` and its extension headers (RFC 8200, section 4).
#[inline(always)]
pub fn ipv6<F: Frame>(frame: &F, l3: usize) -> Result<Transport, Reason> {
    let ip = header::<Ipv6Hdr, F>(frame, l3).ok_or(Reason::Malformed)?;
    if ip.u8::<{ offset_of!(Ipv6Hdr, vcf) }>() >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>());
    let len = (payload as usize).wrapping_add(Ipv6Hdr::LEN);
    let end = packet_end(frame, l3, payload, len, Ipv6Hdr::LEN)?;
    let mut protocol = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    let mut offset = l3.wrapping_add(Ipv6Hdr::LEN);
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let extension = header::<[u8; 8], F>(frame, offset).ok_or(Reason::Malformed)?;
                // Segments left: this node is not the last to see the packet.
                if protocol == ROUTING && extension.u8::<3>() != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                protocol = extension.u8::<0>();
                offset = offset.wrapping_add((extension.u8::<1>() as usize).wrapping_add(1) << 3);
            }
            FRAGMENT => {
                let extension = header::<[u8; 8], F>(frame, offset).ok_or(Reason::Malformed)?;
                // An atomic fragment (RFC 6946) is whole.
                if u16::from_be(extension.u16::<2>()) & 0xfff9 != 0 {
                    return Err(Reason::Fragment);
                }
                protocol = extension.u8::<0>();
                offset = offset.wrapping_add(8);
            }
            _ => return behind_extensions(offset, protocol, end),
        }
    }
    match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => Err(Reason::ExtensionHeaders),
        _ => behind_extensions(offset, protocol, end),
    }
}

/// What follows extension headers, unless they claim to be longer than the packet.
#[inline(always)]
fn behind_extensions(offset: usize, protocol: u8, end: usize) -> Result<Transport, Reason> {
    if offset > end {
        return Err(Reason::Malformed);
    }
    Ok(Transport { offset, protocol, end })
}

/// What the TCP header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    pub flags: u8,
    /// In host order, as the acknowledgement.
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Where the header begins, and bytes of it.
    pub offset: usize,
    pub header_len: usize,
    /// Bytes of data.
    pub payload: u32,
    /// The sender's timestamp, once [`tcp_timestamp`] has looked for it.
    pub timestamp: u32,
}

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Offset of the flags in a TCP header: behind the data offset.
pub const TCP_FLAGS: usize = offset_of!(TcpHdr, _bitfield_1) + 1;

impl Tcp {
    /// A SYN that opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number behind this segment: SYN and FIN count one each.
    #[inline(always)]
    pub const fn sequence_end(&self) -> u32 {
        self.sequence
            .wrapping_add(self.payload)
            .wrapping_add((self.flags & SYN != 0) as u32)
            .wrapping_add((self.flags & FIN != 0) as u32)
    }
}

/// Reads the TCP header of a packet whose addresses are known: its ports go to `work.from`, the
/// rest to `work.tcp`.
#[inline(always)]
pub fn tcp<V: Family, F: Frame>(frame: &F, work: &mut Work<V::Addr>) -> Result<(), Reason> {
    let transport = work.transport;
    let tcp = header::<TcpHdr, F>(frame, transport.offset).ok_or(Reason::Malformed)?;
    let header_len = ((tcp.u8::<{ offset_of!(TcpHdr, _bitfield_1) }>() >> 4) as usize) << 2;
    let data = transport.offset.wrapping_add(header_len);
    let flags = tcp.u8::<TCP_FLAGS>();
    if header_len < TcpHdr::LEN || data > transport.end || (flags & SYN != 0 && flags & (FIN | RST) != 0) {
        return Err(Reason::Malformed);
    }
    work.from.src_port_be = tcp.u16::<{ offset_of!(TcpHdr, source) }>();
    work.from.dst_port_be = tcp.u16::<{ offset_of!(TcpHdr, dest) }>();
    work.tcp = Tcp {
        flags,
        sequence: u32::from_be(tcp.u32::<{ offset_of!(TcpHdr, seq) }>()),
        acknowledgement: u32::from_be(tcp.u32::<{ offset_of!(TcpHdr, ack_seq) }>()),
        offset: transport.offset,
        header_len,
        payload: transport.end.wrapping_sub(data) as u32,
        timestamp: 0,
    };
    Ok(())
}

/// The same for an IP packet without options or extension headers whose fields all fit together;
/// `None` for any other, which takes a longer look. Its addresses are known already.
#[inline(always)]
pub fn plain_tcp<V: Family, F: Frame>(frame: &F, ip: &Header<V::Header>, work: &mut Work<V::Addr>) -> Option<()> {
    let len = V::plain_tcp_len(ip)?;
    let offset = L3.wrapping_add(size_of::<V::Header>());
    let end = L3.wrapping_add(len);
    let tcp = header::<TcpHdr, F>(frame, offset)?;
    let header_len = ((tcp.u8::<{ offset_of!(TcpHdr, _bitfield_1) }>() >> 4) as usize) << 2;
    let data = offset.wrapping_add(header_len);
    let flags = tcp.u8::<TCP_FLAGS>();
    if end > frame.reachable()
        || header_len < TcpHdr::LEN
        || data > end
        || (flags & SYN != 0 && flags & (FIN | RST) != 0)
    {
        return None;
    }
    work.from.src_port_be = tcp.u16::<{ offset_of!(TcpHdr, source) }>();
    work.from.dst_port_be = tcp.u16::<{ offset_of!(TcpHdr, dest) }>();
    work.transport = Transport { offset, protocol: PROTOCOL_TCP, end };
    work.tcp.flags = flags;
    work.tcp.sequence = u32::from_be(tcp.u32::<{ offset_of!(TcpHdr, seq) }>());
    work.tcp.acknowledgement = u32::from_be(tcp.u32::<{ offset_of!(TcpHdr, ack_seq) }>());
    work.tcp.payload = end.wrapping_sub(data) as u32;
    Some(())
}

/// Options that are looked through for one; with 40 bytes there are rarely more than five.
const MAX_OPTIONS: u32 = 8;

/// Kinds of options (RFC 9293, section 3.2; RFC 7323).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const TIMESTAMP: u8 = 8;

/// Where the first option of `kind` begins between `at` and `end`.
#[inline(always)]
fn tcp_option<F: Frame>(frame: &F, at: usize, end: usize, kind: u8) -> Option<usize> {
    let mut at = at;
    for _ in 0..MAX_OPTIONS {
        if at >= end {
            return None;
        }
        // The verifier proves no bound for a single byte; an option that a packet ends with is
        // padding.
        let option = header::<[u8; 2], F>(frame, at)?;
        match option.u8::<0>() {
            END => return None,
            found if found == kind => return Some(at),
            NO_OPERATION => at = at.wrapping_add(1),
            _ => {
                let len = option.u8::<1>() as usize;
                if len < 2 {
                    return None;
                }
                at = at.wrapping_add(len);
            }
        }
    }
    None
}

/// The sender's timestamp (RFC 7323), in host order; 0 if there is none.
#[inline(never)]
pub fn tcp_timestamp<F: Frame>(frame: &F, tcp: &Tcp) -> u32 {
    let end = tcp.offset.wrapping_add(tcp.header_len);
    let Some(at) = tcp_option(frame, tcp.offset.wrapping_add(TcpHdr::LEN), end, TIMESTAMP) else { return 0 };
    header::<[u8; 10], F>(frame, at).map_or(0, |option| u32::from_be(option.u32::<2>()))
}

/// Where the MSS of the TCP header at `offset` lies, and the MSS.
#[inline(always)]
pub fn tcp_mss<F: Frame>(frame: &F, offset: usize) -> Option<(usize, u16)> {
    let tcp = header::<TcpHdr, F>(frame, offset)?;
    let header_len = ((tcp.u8::<{ offset_of!(TcpHdr, _bitfield_1) }>() >> 4) as usize) << 2;
    let at = tcp_option(frame, offset.wrapping_add(TcpHdr::LEN), offset.wrapping_add(header_len), MSS)?;
    let mss = u16::from_be(header::<[u8; 4], F>(frame, at)?.u16::<2>());
    Some((at.wrapping_add(2), mss))
}
