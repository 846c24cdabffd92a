//! What is not for us passes, byte for byte.

use std::net::SocketAddr;

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpNumber};
use lb_common::{flow::Family, verdict::Reason};

use crate::{
    bed::{self, CLIENT_MAC},
    frames::{self, ACK, Envelope, FIN, RST, SYN, Segment, tagged},
    rig::{Action, Hook, rig},
    table::Case,
    talk::Talk,
};

/// One of each kind of packet to `to`, which is no VIP.
fn strangers(family: Family, to: SocketAddr) -> Vec<(&'static str, Vec<u8>)> {
    let client = bed::client(family);
    let envelope = Envelope::new(client.ip(), to.ip());
    let tcp = |flags| Segment::new(client, to, flags).payload(b"data").frame();
    let (ping, gre) = (if family == Family::V4 { 8 } else { 128 }, IpNumber::GRE);
    let syn = tcp(SYN);
    let mut frames = vec![
        ("TCP SYN", syn.clone()),
        ("TCP ACK", tcp(ACK)),
        ("TCP FIN", tcp(FIN | ACK)),
        ("TCP RST", tcp(RST)),
        ("TCP with impossible flags", tcp(SYN | FIN | RST)),
        ("UDP", frames::udp(client, to, b"hello")),
        ("echo request", frames::icmp(&envelope, ping, 0, [0, 1, 0, 2], b"ping")),
        ("unreachable", frames::icmp(&envelope, if family == Family::V4 { 3 } else { 1 }, 1, [0; 4], &[0x45; 28])),
        ("GRE", envelope.around(gre, &[0; 40])),
        ("one tag", tagged(&syn, &[(0x8100, 7)])),
        ("two tags", tagged(&syn, &[(0x88a8, 7), (0x8100, 8)])),
    ];
    if family == Family::V4 {
        let with = |change: fn(&mut Envelope)| {
            let mut envelope = envelope.clone();
            change(&mut envelope);
            envelope.around(IpNumber::TCP, &Segment::new(client, to, SYN).tcp())
        };
        frames.push(("IPv4 options", with(|envelope| envelope.options = vec![1; 40])));
        frames.push(("first fragment", with(|envelope| envelope.fragment = (0, true))));
        frames.push(("last fragment", with(|envelope| envelope.fragment = (100, false))));
        let mut short_header = syn.clone();
        short_header[14] = 0x44;
        frames.push(("IPv4 header length 4", short_header));
        let mut length = syn.clone();
        length[16..18].copy_from_slice(&[0xff, 0xff]);
        frames.push(("total length above the frame's", length));
    } else {
        let with = |first, extensions: &[u8]| {
            let mut envelope = envelope.clone();
            envelope.extensions = Some((first, extensions.to_vec()));
            envelope.around(IpNumber::TCP, &Segment::new(client, to, SYN).tcp())
        };
        frames.push(("hop-by-hop options", with(0, &[6, 0, 1, 4, 0, 0, 0, 0])));
        frames.push(("fragment", with(44, &[6, 0, 0, 1, 0, 0, 0, 1])));
        let many: Vec<u8> = (0..20).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
        frames.push(("twenty extension headers", with(60, &many)));
    }
    frames
}

#[test]
fn traffic_to_other_addresses_passes_unchanged() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let node = SocketAddr::new(bed::local_backend(family).ip(), 22);
            for to in [SocketAddr::new(bed::stranger(family), 80), node] {
                let frames = strangers(family, to);
                let cases: Vec<Case> = frames
                    .into_iter()
                    .map(|(name, frame)| Case::passes(format!("{name} to {to}"), frame, Reason::NotVip))
                    .collect();
                rig.check_at_xdp(&cases);
                rig.check_left_alone_at_tc(&cases);
            }
        }
    });
}

#[test]
fn nodes_own_traffic_to_its_snat_address_passes_unchanged() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            Talk::new(family, 1).handshake(rig);
            let ports = [22, 1024, 4710, 4712, 32_767, 32_768, 40_000, 61_000, 65_535];
            for port in ports {
                let to = SocketAddr::new(bed::snat(family), port);
                let cases: Vec<Case> = strangers(family, to)
                    .into_iter()
                    .map(|(name, frame)| Case::passes(format!("{name} to {to}"), frame, Reason::NotVip))
                    .collect();
                rig.check_at_xdp(&cases);
                rig.check_left_alone_at_tc(&cases);
            }
        }
    });
}

#[test]
fn frames_that_are_not_ip_pass_unchanged() {
    rig(|rig| {
        rig.nat(Family::V4, 1);
        rig.nat(Family::V6, 1);
        let frame = |ether_type: u16, payload: &[u8]| {
            let ether_type = EtherType(ether_type);
            let header = Ethernet2Header { source: CLIENT_MAC, destination: [0xff; 6], ether_type };
            [header.to_bytes().as_slice(), payload].concat()
        };
        let (sender, target) = ([10, 1, 0, 254], [192, 0, 2, 10]);
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &CLIENT_MAC,
            &sender,
            &[0; 6],
            &target,
        );
        let arp = arp.unwrap().to_bytes().to_vec();
        let syn = Talk::new(Family::V4, 1).ask(SYN).frame();
        let cases = [
            ("ARP who has the VIP", frame(0x0806, &arp)),
            ("LLDP", frame(0x88cc, &[0; 46])),
            ("MPLS", frame(0x8847, &syn[14..])),
            ("PPPoE", frame(0x8864, &syn[14..])),
            ("802.3 with a length", frame(46, &[0; 46])),
            ("three tags", tagged(&syn, &[(0x88a8, 1), (0x8100, 2), (0x8100, 3)])),
            ("a tag that is cut short", syn[..12].iter().copied().chain([0x81, 0, 0, 7, 8]).collect()),
        ];
        let cases = cases.map(|(name, frame)| Case::passes(name, frame, Reason::NotIp));
        rig.check_at_xdp(&cases);
        rig.check_left_alone_at_tc(&cases);
        // For TC the kernel makes no test frame without a whole IP header.
        let empty = [0x0800, 0x86dd]
            .map(|kind| Case::passes(format!("nothing behind {kind:#x}"), frame(kind, &[]), Reason::NotIp));
        rig.check_at_xdp(&empty);
    });
}

#[test]
fn other_traffic_cut_short_anywhere_passes_unchanged() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let header = if family == Family::V4 { 34 } else { 54 };
            for (name, frame) in strangers(family, SocketAddr::new(bed::stranger(family), 80)) {
                // The kernel runs no program on less than an Ethernet header.
                for len in 14..frame.len() {
                    let (action, out) = rig.run_only(Hook::Xdp, rig.on.front, &frame[..len]);
                    assert_eq!((action, out.as_slice()), (Action::Pass, &frame[..len]), "{name}, {len} bytes");
                }
                if frame[12..14] == [0x08, 0x00] || frame[12..14] == [0x86, 0xdd] {
                    let cut = |len: usize, reason| {
                        Case::passes(format!("{name}, {len} bytes"), frame[..len].to_vec(), reason)
                    };
                    rig.check_at_xdp(&[cut(header - 1, Reason::NotIp), cut(header, Reason::NotVip)]);
                    rig.check_left_alone_at_tc(&[cut(header, Reason::NotVip)]);
                }
            }
        }
    });
}
