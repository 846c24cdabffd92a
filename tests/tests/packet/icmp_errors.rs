//! ICMP errors about flows of ours, from either side; those of others.

use std::net::{IpAddr, SocketAddr};

use etherparse::IpNumber;
use lb_common::{flow::Family, verdict::Reason};

use crate::{
    bed::{self, BACK_MAC, CLIENT_MAC, FRONT_MAC, backend_mac},
    frames::{self, ACK, Envelope, PSH, SYN, Segment, icmp},
    rig::{Action, Hook, Rig, rig},
    talk::Talk,
};

/// Type, code and the four bytes after the checksum.
fn kinds(family: Family) -> [(&'static str, u8, u8, [u8; 4]); 4] {
    match family {
        Family::V4 => [
            ("fragmentation needed", 3, 4, [0, 0, 5, 0]),
            ("host unreachable", 3, 1, [0; 4]),
            ("time exceeded", 11, 0, [0; 4]),
            ("parameter problem", 12, 0, [20, 0, 0, 0]),
        ],
        Family::V6 => [
            ("packet too big", 2, 0, [0, 0, 5, 0]),
            ("address unreachable", 1, 3, [0; 4]),
            ("time exceeded", 3, 0, [0; 4]),
            ("parameter problem", 4, 0, [0, 0, 0, 6]),
        ],
    }
}

/// A router between client and balancer.
fn router(family: Family) -> IpAddr {
    bed::other_client(family).ip()
}

/// The first bytes of a packet, `tcp` of them behind its IP header.
fn quote(segment: &Segment, tcp: usize) -> Vec<u8> {
    let packet = segment.envelope.packet(IpNumber::TCP, &segment.tcp());
    let header = packet.len() - segment.tcp().len();
    packet[..packet.len().min(header + tcp)].to_vec()
}

/// The quote of `original` when it is told of `seen`: addresses and ports are those of `seen`, its
/// TCP checksum still the original one.
fn quote_translated(original: &Segment, seen: &Segment, tcp: usize) -> Vec<u8> {
    let (mut translated, original) = (quote(seen, tcp), quote(original, tcp));
    let header = translated.len() - tcp.min(seen.tcp().len());
    let checksum = header + 16..header + 18;
    if translated.len() >= checksum.end {
        translated[checksum.clone()].copy_from_slice(&original[checksum]);
    }
    translated
}

/// How much of TCP is quoted: the least, all of a plain header, header and data.
const QUOTED: [usize; 4] = [8, 20, 32, 400];

/// Errors of the client's side about what the backend sends.
fn from_clients_side(rig: &Rig, talk: &Talk) {
    for (name, kind, code, rest) in kinds(talk.family) {
        for size in QUOTED {
            // As it was sent, and as it was when it left for the client.
            let sent = talk.answer(PSH | ACK).timestamp(9).payload(&[7; 500]);
            let left = talk.answered(&sent).ttl(9);
            let sent = left.clone().between(talk.backend, talk.snat);
            let mut envelope = Envelope::new(router(talk.family), talk.vip.ip());
            let frame = icmp(&envelope, kind, code, rest, &quote(&left, size));
            (envelope.src, envelope.dst, envelope.ttl) = (talk.snat.ip(), talk.backend.ip(), 63);
            (envelope.src_mac, envelope.dst_mac) = (BACK_MAC, talk.backend_mac);
            let out = icmp(&envelope, kind, code, rest, &quote_translated(&left, &sent, size));
            let ran = rig.run(Hook::Xdp, rig.on.front, &frame);
            let problems = ran.differs(Action::Redirect, &["icmp_error"], Some(&out));
            assert_eq!(problems, "", "{name} that quotes {size} bytes of {talk:?}");
            rig.run(Hook::Ingress, rig.on.front, &frame).is_dropped(Reason::Raced);
        }
    }
}

/// Errors of the backend's side about what the client sends.
fn from_backends_side(rig: &Rig, talk: &Talk) {
    for (name, kind, code, rest) in kinds(talk.family) {
        for size in QUOTED {
            let sent = talk.ask(PSH | ACK).timestamp(9).payload(&[7; 500]);
            let left = talk.asked(&sent).ttl(9);
            let sent = left.clone().between(talk.client, talk.vip);
            let mut envelope = Envelope::new(talk.backend.ip(), talk.snat.ip());
            (envelope.src_mac, envelope.dst_mac) = (backend_mac(1), BACK_MAC);
            let frame = icmp(&envelope, kind, code, rest, &quote(&left, size));
            (envelope.src, envelope.dst, envelope.ttl) = (talk.vip.ip(), talk.client.ip(), 63);
            (envelope.src_mac, envelope.dst_mac) = (FRONT_MAC, CLIENT_MAC);
            let out = icmp(&envelope, kind, code, rest, &quote_translated(&left, &sent, size));
            let ran = rig.run(Hook::Xdp, rig.on.back, &frame);
            let problems = ran.differs(Action::Redirect, &["icmp_error"], Some(&out));
            assert_eq!(problems, "", "{name} that quotes {size} bytes of {talk:?}");
        }
    }
}

#[test]
fn errors_about_a_flow_reach_the_other_end_and_speak_of_what_it_knows() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(SYN | ACK));
            from_clients_side(rig, &talk);
            from_backends_side(rig, &talk);
            talk.send(rig, &talk.ask(ACK));
            from_clients_side(rig, &talk);
            from_backends_side(rig, &talk);
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn error_and_quoted_packet_may_have_ip_options() {
    rig(|rig| {
        rig.nat(Family::V4, 1);
        let talk = Talk::new(Family::V4, 1);
        talk.handshake(rig);
        let left = talk.answered(&talk.answer(ACK)).with(|ip| ip.options = vec![1; 12]);
        let seen = left.clone().between(talk.backend, talk.snat);
        let mut envelope = Envelope::new(router(Family::V4), talk.vip.ip());
        envelope.options = vec![1; 8];
        let frame = icmp(&envelope, 11, 0, [0; 4], &quote(&left, 8));
        (envelope.src, envelope.dst, envelope.ttl) = (talk.snat.ip(), talk.backend.ip(), 63);
        (envelope.src_mac, envelope.dst_mac) = (BACK_MAC, talk.backend_mac);
        let out = icmp(&envelope, 11, 0, [0; 4], &quote(&seen, 8));
        rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Redirect, Reason::IcmpError, &out);
    });
}

#[test]
fn errors_that_quote_no_flow_of_ours_are_dropped_at_the_vip_and_the_nodes_elsewhere() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let (_, kind, code, rest) = kinds(family)[0];
            let of_flow = talk.answered(&talk.answer(ACK));
            let stranger = SocketAddr::new(bed::stranger(family), 80);
            let ip = if family == Family::V4 { 20 } else { 40 };
            let mut not_tcp = quote(&of_flow, 20);
            not_tcp[if family == Family::V4 { 9 } else { 6 }] = 17;
            let quotes = [
                ("another client", quote(&of_flow.clone().between(talk.vip, stranger), 20)),
                (
                    "another port of the client",
                    quote(&of_flow.clone().between(talk.vip, (talk.client.ip(), 1).into()), 20),
                ),
                ("another source than the VIP", quote(&of_flow.clone().between(stranger, talk.client), 20)),
                ("the client's own packet", quote(&talk.ask(ACK), 20)),
                ("UDP", not_tcp),
                ("seven bytes of TCP", quote(&of_flow, 7)),
                ("no TCP", quote(&of_flow, 0)),
                ("half an IP header", quote(&of_flow, 0)[..ip / 2].to_vec()),
                ("nothing", Vec::new()),
            ];
            for (name, quote) in &quotes {
                let frame = icmp(&Envelope::new(router(family), talk.vip.ip()), kind, code, rest, quote);
                let ran = rig.run(Hook::Xdp, rig.on.front, &frame);
                assert_eq!(ran.differs(Action::Drop, &["protocol_not_served"], None), "", "{name}");

                let frame = icmp(&Envelope::new(router(family), talk.snat.ip()), kind, code, rest, quote);
                let ran = rig.run(Hook::Xdp, rig.on.back, &frame);
                assert_eq!(ran.differs(Action::Pass, &["not_vip"], Some(&frame)), "", "{name} to the SNAT address");
            }
            // Echo to the SNAT address is the node's own.
            let envelope = Envelope::new(router(family), talk.snat.ip());
            let ping = frames::icmp(&envelope, if family == Family::V4 { 8 } else { 128 }, 0, [0; 4], b"ping");
            rig.run(Hook::Xdp, rig.on.front, &ping).is(Action::Pass, Reason::NotVip, &ping);
        }
    });
}
