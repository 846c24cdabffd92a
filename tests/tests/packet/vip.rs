//! What comes to a VIP and is not for a served port: reset, answered, dropped, or the node's own.

use std::net::SocketAddr;

use etherparse::IpNumber;
use lb_common::{flow::Family, service::address, verdict::Reason};

use crate::{
    bed::{self, CLIENT_MAC, FRONT_MAC},
    frames::{self, ACK, Envelope, FIN, PSH, RST, SYN, Segment},
    rig::rig,
    setup::stats_of,
    table::Case,
    talk::reset_of,
};

/// TCP of every kind that is answered by a reset.
fn resettable(family: Family, port: u16) -> Vec<(String, Segment)> {
    let to = SocketAddr::new(bed::vip(family), port);
    let segment = |flags| Segment::new(bed::client(family), to, flags);
    let mut segments = Vec::new();
    for (name, flags) in
        [("SYN", SYN), ("SYN-ACK", SYN | ACK), ("ACK", ACK), ("FIN", FIN), ("FIN-ACK", FIN | ACK), ("no flag", 0)]
    {
        for payload in [b"".as_slice(), b"odd", b"even"] {
            for sequence in [1, 0xffff_fffe] {
                let segment =
                    segment(flags).sequence(sequence, if flags & ACK != 0 { 0xdead_beef } else { 0 }).payload(payload);
                segments.push((format!("{name}, sequence {sequence}, {} bytes", payload.len()), segment));
            }
        }
    }
    segments.push((
        "urgent data and options".into(),
        segment(PSH | ACK).sequence(5, 6).options(&[1; 40]).payload(&[7; 999]),
    ));
    if family == Family::V4 {
        segments.push(("IPv4 options".into(), segment(SYN).with(|ip| ip.options = vec![1; 40]).payload(b"x")));
    } else {
        let destination_options = vec![6, 0, 1, 4, 0, 0, 0, 0];
        segments.push((
            "an extension header".into(),
            segment(SYN).with(|ip| ip.extensions = Some((60, destination_options))),
        ));
    }
    segments
}

/// The reset has none of the options and extensions.
fn plain_reset_of(segment: &Segment) -> Vec<u8> {
    reset_of(segment).frame()
}

#[test]
fn tcp_to_a_port_that_is_not_served_is_reset_with_the_numbers_of_rfc_9293() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let cases: Vec<Case> = resettable(family, 81)
                .into_iter()
                .map(|(name, segment)| {
                    Case::answers(name, segment.frame(), Reason::PortNotServed, plain_reset_of(&segment))
                })
                .collect();
            rig.check_at_xdp(&cases);
            assert_eq!(rig.counts(family), (0, 0));
        }
    });
}

#[test]
fn middle_of_an_unknown_connection_is_reset_and_counted_as_refused() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let cases: Vec<Case> = resettable(family, 80)
                .into_iter()
                .filter(|(_, segment)| segment.flags & (SYN | ACK) != SYN)
                .map(|(name, segment)| {
                    Case::answers(name, segment.frame(), Reason::UnknownFlow, plain_reset_of(&segment))
                })
                .collect();
            rig.check_at_xdp(&cases);
            assert_eq!(rig.counts(family), (0, 0));
            assert_eq!(rig.service_stats(stats_of(family)).refused, cases.len() as u64);
        }
    });
}

#[test]
fn service_without_an_eligible_backend_resets_every_syn() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            rig.set_slots(family, |_| 0);
            let cases: Vec<Case> = resettable(family, 80)
                .into_iter()
                .filter(|(_, segment)| segment.flags & (SYN | ACK) == SYN)
                .map(|(name, segment)| {
                    Case::answers(name, segment.frame(), Reason::NoBackend, plain_reset_of(&segment))
                })
                .collect();
            rig.check_at_xdp(&cases);
            assert_eq!(rig.counts(family), (0, 0));
            assert_eq!(rig.service_stats(stats_of(family)).refused, cases.len() as u64);
        }
    });
}

#[test]
fn reset_is_never_answered() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let mut cases = Vec::new();
            for port in [80, 81] {
                for flags in [RST, RST | ACK, RST | FIN, RST | PSH | ACK] {
                    let to = SocketAddr::new(bed::vip(family), port);
                    let frame = Segment::new(bed::client(family), to, flags).payload(b"why").frame();
                    cases.push(Case::drops(format!("flags {flags:#x} to {to}"), frame, Reason::StrayReset));
                }
            }
            rig.check_at_xdp(&cases);
        }
    });
}

fn echo_request(family: Family, to: std::net::IpAddr, ttl: u8, data: &[u8]) -> (Envelope, Vec<u8>) {
    let mut envelope = Envelope::new(bed::client(family).ip(), to);
    envelope.ttl = ttl;
    let kind = if family == Family::V4 { 8 } else { 128 };
    let frame = frames::icmp(&envelope, kind, 0, [0x12, 0x34, 0, 1], data);
    (envelope, frame)
}

#[test]
fn echo_to_a_vip_is_answered() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let mut cases = Vec::new();
            for ttl in [1, 2, 64, 255] {
                for size in [0, 1, 56, 1400] {
                    let data: Vec<u8> = (0..size).map(|byte| (byte * 7) as u8).collect();
                    let (mut envelope, frame) = echo_request(family, bed::vip(family), ttl, &data);
                    (envelope.src, envelope.dst) = (envelope.dst, envelope.src);
                    (envelope.src_mac, envelope.dst_mac, envelope.ttl) = (FRONT_MAC, CLIENT_MAC, 64);
                    let kind = if family == Family::V4 { 0 } else { 129 };
                    let out = frames::icmp(&envelope, kind, 0, [0x12, 0x34, 0, 1], &data);
                    cases.push(Case::answers(format!("TTL {ttl}, {size} bytes"), frame, Reason::Echo, out));
                }
            }
            rig.check_at_xdp(&cases);
        }
    });
}

#[test]
fn other_protocols_to_a_vip_are_dropped() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let (client, vip) = (bed::client(family), bed::vip(family));
            let envelope = Envelope::new(client.ip(), vip);
            let mut cases = vec![
                Case::drops("UDP", frames::udp(client, bed::web(family), b"hello"), Reason::NotServedProtocol),
                Case::drops("SCTP", envelope.around(IpNumber(132), &[0; 32]), Reason::NotServedProtocol),
                Case::drops("GRE", envelope.around(IpNumber::GRE, &[0; 32]), Reason::NotServedProtocol),
                Case::drops("ESP", envelope.around(IpNumber(50), &[0; 32]), Reason::NotServedProtocol),
                Case::drops("AH", envelope.around(IpNumber(51), &[0; 32]), Reason::NotServedProtocol),
            ];
            let other = if family == Family::V4 {
                (IpNumber::IPV6_ICMP, [0, 13, 5])
            } else {
                (IpNumber::ICMP, [129, 200, 150])
            };
            cases.push(Case::drops(
                "the other family's ICMP",
                envelope.around(other.0, &[8; 32]),
                Reason::NotServedProtocol,
            ));
            for kind in other.1 {
                let frame = frames::icmp(&envelope, kind, 0, [0; 4], &[0; 32]);
                cases.push(Case::drops(format!("ICMP type {kind}"), frame, Reason::NotServedProtocol));
            }
            if family == Family::V6 {
                let mut envelope = envelope.clone();
                envelope.extensions = Some((59, Vec::new()));
                cases.push(Case::drops(
                    "no next header",
                    envelope.around(IpNumber::TCP, b""),
                    Reason::NotServedProtocol,
                ));
            }
            rig.check_at_xdp(&cases);
        }
    });
}

#[test]
fn neighbour_discovery_for_a_vip_is_the_nodes() {
    rig(|rig| {
        rig.nat(Family::V6, 1);
        let envelope = Envelope::new(bed::client(Family::V6).ip(), bed::vip(Family::V6));
        let cases: Vec<Case> = (133..=137)
            .map(|kind| {
                let frame = frames::icmp(&envelope, kind, 0, [0; 4], &[0; 24]);
                Case::passes(format!("type {kind}"), frame, Reason::NodeIcmp)
            })
            .collect();
        rig.check_at_xdp(&cases);
        rig.check_left_alone_at_tc(&cases);
    });
}

#[test]
fn what_a_vip_does_not_serve_is_the_nodes_where_the_vip_is_its_address() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let vip = bed::node_vip(family);
            rig.set_address(vip, address::VIP | address::NODE);
            let client = bed::client(family);
            let envelope = Envelope::new(client.ip(), vip);
            let tcp = |flags| Segment::new(client, (vip, 22).into(), flags);
            let mut cases = vec![
                ("SYN", tcp(SYN).frame()),
                ("ACK with data", tcp(ACK).payload(b"ssh").frame()),
                ("RST", tcp(RST | ACK).frame()),
                ("UDP", frames::udp(client, (vip, 53).into(), b"dns")),
                ("GRE", envelope.around(IpNumber::GRE, &[0; 32])),
                ("echo request", echo_request(family, vip, 64, b"ping").1),
                ("impossible flags", tcp(SYN | FIN).frame()),
            ];
            if family == Family::V4 {
                cases.push(("fragment", tcp(SYN).with(|ip| ip.fragment = (7, true)).frame()));
            } else {
                cases.push((
                    "fragment",
                    tcp(SYN).with(|ip| ip.extensions = Some((44, vec![6, 0, 0, 9, 0, 0, 0, 1]))).frame(),
                ));
                let many: Vec<u8> = [60, 0, 1, 4, 0, 0, 0, 0].repeat(7);
                cases.push(("extension headers", tcp(SYN).with(|ip| ip.extensions = Some((60, many))).frame()));
            }
            let cases: Vec<Case> =
                cases.into_iter().map(|(name, frame)| Case::passes(name, frame, Reason::NodePort)).collect();
            rig.check_at_xdp(&cases);
            rig.check_left_alone_at_tc(&cases);
        }
    });
}

#[test]
fn echo_request_behind_the_end_of_its_packet_is_padding() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let (_, mut frame) = echo_request(family, bed::vip(family), 64, b"ping");
            // The IP packet ends before, or in the middle of, the ICMP header.
            for len in [0_u16, 7] {
                match family {
                    Family::V4 => frame[16..18].copy_from_slice(&(20 + len).to_be_bytes()),
                    Family::V6 => frame[18..20].copy_from_slice(&len.to_be_bytes()),
                }
                rig.check_at_xdp(&[Case::drops(format!("{len} bytes"), frame.clone(), Reason::Malformed)]);
            }
        }
    });
}
