//! Frames, made by etherparse: what goes in, and what is expected to come out, byte for byte.
//! Checksums are etherparse's, never ours.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6Header, TcpHeader, UdpHeader,
};

pub type Mac = [u8; 6];

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// Everything below the transport: Ethernet and IP.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// DSCP and ECN.
    pub class: u8,
    pub id: u16,
    /// IPv6.
    pub flow_label: u32,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers, and the protocol number of the first one.
    pub extensions: Option<(u8, Vec<u8>)>,
    /// IPv4: the fragment offset in eights of bytes, and whether more follow.
    pub fragment: (u16, bool),
    /// IPv4: the sender does not forbid fragmentation.
    pub may_be_cut: bool,
}

impl Envelope {
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self {
            src_mac: super::bed::CLIENT_MAC,
            dst_mac: super::bed::FRONT_MAC,
            src,
            dst,
            ttl: 64,
            class: 0,
            id: 0x1234,
            flow_label: 0,
            options: Vec::new(),
            extensions: None,
            fragment: (0, false),
            may_be_cut: false,
        }
    }

    /// The whole frame around `payload`, of this protocol.
    pub fn around(&self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let ether_type = if self.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let ethernet = Ethernet2Header { source: self.src_mac, destination: self.dst_mac, ether_type };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend(self.packet(protocol, payload));
        frame
    }

    /// The IP packet alone.
    pub fn packet(&self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header::new(0, self.ttl, protocol, src.octets(), dst.octets()).unwrap();
                ip.dscp = (self.class >> 2).try_into().unwrap();
                ip.ecn = (self.class & 3).try_into().unwrap();
                ip.identification = self.id;
                ip.dont_fragment = self.fragment == (0, false) && !self.may_be_cut;
                ip.fragment_offset = IpFragOffset::try_new(self.fragment.0).unwrap();
                ip.more_fragments = self.fragment.1;
                ip.options = Ipv4Options::try_from(self.options.as_slice()).unwrap();
                ip.set_payload_len(payload.len()).unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                packet.extend(ip.to_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (next, extensions) = self.extensions.clone().unwrap_or((protocol.0, Vec::new()));
                let ip = Ipv6Header {
                    payload_length: (extensions.len() + payload.len()) as u16,
                    next_header: IpNumber(next),
                    hop_limit: self.ttl,
                    traffic_class: self.class,
                    flow_label: self.flow_label.try_into().unwrap(),
                    source: src.octets(),
                    destination: dst.octets(),
                };
                packet.extend(ip.to_bytes());
                packet.extend(extensions);
            }
            (src, dst) => panic!("{src} and {dst} are of different families"),
        }
        packet.extend_from_slice(payload);
        packet
    }
}

/// A TCP segment in a frame.
#[derive(Clone, Debug)]
pub struct Segment {
    pub envelope: Envelope,
    pub src_port: u16,
    pub dst_port: u16,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn new(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        Self {
            envelope: Envelope::new(src.ip(), dst.ip()),
            src_port: src.port(),
            dst_port: dst.port(),
            flags,
            sequence: 1000,
            acknowledgement: 0,
            window: 64_240,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub fn sequence(mut self, sequence: u32, acknowledgement: u32) -> Self {
        (self.sequence, self.acknowledgement) = (sequence, acknowledgement);
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// TCP options as they lie in the header, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With a timestamp of this value (RFC 7323).
    pub fn timestamp(self, value: u32) -> Self {
        let mut options = vec![1, 1, 8, 10];
        options.extend(value.to_be_bytes());
        options.extend([0; 4]);
        self.options(&options)
    }

    pub fn macs(mut self, src: Mac, dst: Mac) -> Self {
        (self.envelope.src_mac, self.envelope.dst_mac) = (src, dst);
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.envelope.ttl = ttl;
        self
    }

    /// The same with other ends.
    pub fn between(mut self, src: SocketAddr, dst: SocketAddr) -> Self {
        (self.envelope.src, self.envelope.dst) = (src.ip(), dst.ip());
        (self.src_port, self.dst_port) = (src.port(), dst.port());
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        change(&mut self.envelope);
        self
    }

    /// TCP header and data.
    pub fn tcp(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.src_port, self.dst_port, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgement;
        tcp.fin = self.flags & FIN != 0;
        tcp.syn = self.flags & SYN != 0;
        tcp.rst = self.flags & RST != 0;
        tcp.psh = self.flags & PSH != 0;
        tcp.ack = self.flags & ACK != 0;
        tcp.set_options_raw(&self.options).unwrap();
        tcp.checksum = match (self.envelope.src, self.envelope.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                tcp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload).unwrap()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                tcp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &self.payload).unwrap()
            }
            (src, dst) => panic!("{src} and {dst} are of different families"),
        };
        let mut bytes = tcp.to_bytes().to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    pub fn frame(&self) -> Vec<u8> {
        self.envelope.around(IpNumber::TCP, &self.tcp())
    }
}

/// A UDP datagram in a frame.
pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let header = match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let blank = Ipv4Header::new(0, 64, IpNumber::UDP, from, to).unwrap();
            UdpHeader::with_ipv4_checksum(src.port(), dst.port(), &blank, payload).unwrap()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let blank = Ipv6Header { source: from.octets(), destination: to.octets(), ..Default::default() };
            UdpHeader::with_ipv6_checksum(src.port(), dst.port(), &blank, payload).unwrap()
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    };
    let mut datagram = header.to_bytes().to_vec();
    datagram.extend_from_slice(payload);
    Envelope::new(src.ip(), dst.ip()).around(IpNumber::UDP, &datagram)
}

/// An ICMP message in a frame: type, code, the four bytes after the checksum, and the rest.
pub fn icmp(envelope: &Envelope, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let (protocol, mut message) = match (envelope.src, envelope.dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
            (IpNumber::ICMP, Icmpv4Header::with_checksum(kind, payload).to_bytes().to_vec())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
            let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), payload).unwrap();
            (IpNumber::IPV6_ICMP, header.to_bytes().to_vec())
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    };
    message.extend_from_slice(payload);
    envelope.around(protocol, &message)
}

/// The frame with VLAN tags behind its addresses, the outermost first: (EtherType, VLAN).
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let mut tagged = addresses.to_vec();
    for (ether_type, vlan) in tags {
        tagged.extend(ether_type.to_be_bytes());
        tagged.extend(vlan.to_be_bytes());
    }
    tagged.extend_from_slice(rest);
    tagged
}
