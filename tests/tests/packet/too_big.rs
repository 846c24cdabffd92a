//! What does not fit in a tunnel: the client is told, by ICMP from the VIP (RFC 1191, RFC 8201),
//! and not too often.

use etherparse::IpNumber;
use lb_common::{
    backend::{WAY_IPIP_V4, WAY_IPIP_V6},
    flow::{Family, any_addr},
    service::MODE_DSR_IPIP,
    verdict::Reason,
};

use crate::{
    bed::{self, CLIENT_MAC, FRONT_MAC},
    frames::{ACK, Envelope, PSH, Segment, icmp},
    rig::{Action, Hook, Ran, Rig, rig},
    talk::Talk,
};

const MIXED: [(Family, Family); 4] =
    [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6), (Family::V6, Family::V4)];
/// Of every interface.
const MTU: usize = 1500;
/// Bytes of the packet that are quoted.
const QUOTE: usize = 128;

fn header(family: Family) -> usize {
    if family == Family::V4 { 20 } else { 40 }
}

fn ipip(rig: &mut Rig, family: Family, over: Family) {
    rig.nat(family, 1);
    rig.forget_syns();
    rig.set_service(family, |service| service.mode = MODE_DSR_IPIP);
    rig.change_backend(1, |backend| {
        backend.way = if over == Family::V4 { WAY_IPIP_V4 } else { WAY_IPIP_V6 };
        backend.port_be = 80_u16.to_be();
        backend.tunnel = any_addr(bed::backend(over, 1).ip());
        backend.tunnel_source = any_addr(bed::snat(over));
    });
    rig.forget_answers();
}

/// A client's packet of this length, from its IP header on.
fn of_length(family: Family, length: usize) -> Segment {
    Talk::new(family, 1).ask(PSH | ACK).payload(&vec![7; length - header(family) - 20])
}

/// What tells the sender of `segment` that `mtu` bytes fit.
fn told(segment: &Segment, mtu: usize) -> Vec<u8> {
    let ip = &segment.envelope;
    let mut envelope = Envelope::new(ip.dst, ip.src);
    (envelope.src_mac, envelope.dst_mac, envelope.id) = (FRONT_MAC, CLIENT_MAC, 0);
    let packet = ip.packet(IpNumber::TCP, &segment.tcp());
    let (kind, code) = if ip.src.is_ipv4() { (3, 4) } else { (2, 0) };
    icmp(&envelope, kind, code, (mtu as u32).to_be_bytes(), &packet[..QUOTE])
}

#[track_caller]
fn is_told(ran: &Ran, segment: &Segment, mtu: usize) {
    ran.is(Action::Tx, Reason::PacketTooBig, &told(segment, mtu));
}

#[test]
fn packet_that_just_fits_goes_and_one_byte_more_is_answered_with_what_fits() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over);
            let talk = Talk::new(family, 1);
            let fits = MTU - header(over);
            let ran = talk.show(rig, &of_length(family, fits));
            assert_eq!((ran.action, ran.frame.len()), (Action::Redirect, 14 + MTU), "{family:?} in {over:?}");
            for length in [fits + 1, MTU] {
                let segment = of_length(family, length);
                is_told(&talk.show(rig, &segment), &segment, fits);
            }
        }
    });
}

#[test]
fn answer_quotes_the_packet_as_it_came_with_options_and_extension_headers() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over);
            let segment = of_length(family, MTU - 60).timestamp(9).ttl(7).with(|ip| {
                ip.class = 0xb9;
                match family {
                    Family::V4 => ip.options = vec![1; 40],
                    Family::V6 => ip.extensions = Some((60, [6, 3, 1, 28].into_iter().chain([0; 28]).collect())),
                }
            });
            is_told(&Talk::new(family, 1).show(rig, &segment), &segment, MTU - header(over));
        }
    });
}

/// Hosts with path MTU discovery turned off then send less at once, too; without an answer they
/// would send the same for ever.
#[test]
fn sender_that_lets_its_packets_be_cut_is_told_as_well() {
    rig(|rig| {
        for over in Family::BOTH {
            ipip(rig, Family::V4, over);
            let segment = of_length(Family::V4, MTU).with(|ip| ip.may_be_cut = true);
            is_told(&Talk::new(Family::V4, 1).show(rig, &segment), &segment, MTU - header(over));
        }
    });
}

#[test]
fn icmp_error_that_is_too_big_itself_is_not_answered() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over);
            let talk = Talk::new(family, 1);
            let answer = Segment::new(talk.vip, talk.client, ACK).payload(&[7; 1470]);
            let quote = answer.envelope.packet(IpNumber::TCP, &answer.tcp());
            let envelope = Envelope::new(bed::other_client(family).ip(), talk.vip.ip());
            let kind = if family == Family::V4 { 3 } else { 1 };
            let frame = icmp(&envelope, kind, 1, [0; 4], &quote[..MTU - header(family) - 8]);
            rig.run(Hook::Xdp, rig.on.front, &frame).is_dropped(Reason::TooBig);
        }
    });
}

#[test]
fn answers_are_limited_and_what_is_left_unsaid_is_counted() {
    rig(|rig| {
        for family in Family::BOTH {
            ipip(rig, family, family);
            let segment = of_length(family, MTU);
            let frame = segment.frame();
            // 64 within 64 ticks on a processor: the runs may take longer, or move.
            let unsaid = (0..100_000).find(|_| rig.run_only(Hook::Xdp, rig.on.front, &frame).0 == Action::Drop);
            assert!(unsaid.is_some_and(|said| said >= 64), "{unsaid:?} answers came before the first was left out");
            let ran = rig.run(Hook::Xdp, rig.on.front, &frame);
            assert_eq!(ran.differs(Action::Drop, &["too_big", "too_big_unsaid"], None), "");
            std::thread::sleep(std::time::Duration::from_millis(700));
            is_told(&rig.run(Hook::Xdp, rig.on.front, &frame), &segment, MTU - header(family));
        }
    });
}

/// GRO has made it of several packets, each of which may fit: generic XDP sees only the whole. What
/// TC does with it can't be shown here: a test run's super-packet is of no kind that the kernel
/// lets grow.
#[test]
fn super_packet_is_left_to_tc() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over);
            let frame = of_length(family, 2 * 1400).frame();
            rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Pass, Reason::NoXdpWayOut, &frame);
        }
    });
}

#[test]
fn tc_drops_and_counts_what_does_not_fit() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over);
            rig.change_backend(1, |backend| backend.tunnel = any_addr(bed::silent_backend(over).ip()));
            let frame = of_length(family, MTU - header(over) + 1).frame();
            rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Pass, Reason::NoNeighbour, &frame);
            rig.run(Hook::Ingress, rig.on.front, &frame).is_dropped(Reason::TooBig);
            let frame = of_length(family, MTU - header(over)).frame();
            let ran = rig.run(Hook::Ingress, rig.on.front, &frame);
            assert_eq!((ran.action, ran.frame.len()), (Action::Redirect, 14 + MTU), "{family:?} in {over:?}");
        }
    });
}
