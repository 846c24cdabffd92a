//! TC ingress by itself: all that XDP passes on because it can't send, and what must not get that
//! far.

use lb_common::{flow::Family, service::address, verdict::Reason};

use crate::{
    bed,
    frames::{self, ACK, FIN, PSH, RST, SYN, Segment},
    rig::{Action, Hook, Rig, context, rig},
    setup::stats_of,
    talk::{CLIENT_SEQUENCE, SERVER_SEQUENCE, Talk},
};

/// As the kernel gets it back for its redirect: MAC addresses are left to it.
fn left(segment: &Segment, out: Segment) -> Vec<u8> {
    out.macs(segment.envelope.src_mac, segment.envelope.dst_mac).frame()
}

#[track_caller]
fn send(rig: &Rig, talk: &Talk, segment: &Segment) {
    let ran = rig.run(Hook::Ingress, rig.on.front, &segment.frame());
    ran.is(Action::Redirect, Reason::ToBackendByTc, &left(segment, talk.asked(segment)));
}

#[track_caller]
fn reply(rig: &Rig, talk: &Talk, segment: &Segment) {
    let ran = rig.run(Hook::Ingress, rig.on.back, &segment.frame());
    ran.is(Action::Redirect, Reason::ToClientByTc, &left(segment, talk.answered(segment)));
}

#[test]
fn whole_conversation_goes_by_tc_with_the_same_rewrites() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            send(rig, &talk, &talk.ask(SYN).timestamp(7));
            reply(rig, &talk, &talk.answer(SYN | ACK).timestamp(8));
            send(rig, &talk, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
            for size in [1, 2, 100, 1400] {
                send(rig, &talk, &talk.ask(PSH | ACK).payload(&vec![3; size]));
                reply(rig, &talk, &talk.answer(PSH | ACK).payload(&vec![4; size]));
            }
            let rich = talk.ask(ACK).timestamp(9).with(|ip| match family {
                Family::V4 => ip.options = vec![1; 40],
                Family::V6 => ip.extensions = Some((60, [6, 2, 1, 20].into_iter().chain([0; 20]).collect())),
            });
            send(rig, &talk, &rich);
            send(rig, &talk, &talk.ask(FIN | ACK));
            reply(rig, &talk, &talk.answer(RST | ACK));
            let stats = rig.service_stats(stats_of(family));
            assert_eq!((stats.packets, stats.reply_packets, stats.connections, stats.refused), (8, 6, 1, 0));
        }
    });
}

#[test]
fn super_packet_of_gro_is_rewritten_whole() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let large = talk.ask(PSH | ACK).payload(&[5; 2900]);
            let frame = large.frame();
            let mut context = context(Hook::Ingress, rig.on.front, frame.len() as u32);
            // `gso_segs` and `gso_size` in `__sk_buff`, in words.
            for (word, value) in [(41, 2_u32), (44, 1448)] {
                context[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
            }
            let (action, out) = rig.run_as(Hook::Ingress, &context, &frame);
            assert_eq!(action, Action::Redirect);
            assert!(out == left(&large, talk.asked(&large)), "the super-packet is not what is expected");
        }
    });
}

#[test]
fn what_xdp_would_have_answered_is_dropped_and_counted() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let other = Talk { vip: (talk.vip.ip(), 81).into(), ..talk };
            let echo = frames::Envelope::new(talk.client.ip(), talk.vip.ip());
            let echo = frames::icmp(&echo, if family == Family::V4 { 8 } else { 128 }, 0, [0; 4], b"ping");
            for frame in [talk.ask(ACK).frame(), other.ask(SYN).frame(), echo] {
                rig.run(Hook::Ingress, rig.on.front, &frame).is_dropped(Reason::Raced);
            }
            rig.set_slots(family, |_| 0);
            rig.run(Hook::Ingress, rig.on.front, &talk.ask(SYN).frame()).is_dropped(Reason::Raced);
            rig.run(Hook::Ingress, rig.on.front, &talk.ask(RST).frame()).is_dropped(Reason::StrayReset);
            let udp = frames::udp(talk.client, talk.vip, b"hello");
            rig.run(Hook::Ingress, rig.on.front, &udp).is_dropped(Reason::NotServedProtocol);
        }
    });
}

#[test]
fn vip_that_is_the_nodes_only_address_is_the_one_that_backends_answer_to() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            // The VIP is the node's address, and the one of SNAT.
            rig.set_address(bed::vip(family), address::VIP | address::NODE | address::SNAT);
            let index = family.number().into();
            rig.snat_addresses.set(index, lb_common::flow::any_addr(bed::vip(family)), 0).unwrap();
            let talk = Talk::new(family, 1);
            let talk = Talk { snat: (bed::vip(family), talk.client.port()).into(), ..talk };
            talk.handshake(rig);
            talk.reply(rig, &talk.answer(PSH | ACK).payload(b"answer"));
            reply(rig, &talk, &talk.answer(PSH | ACK).sequence(SERVER_SEQUENCE + 7, CLIENT_SEQUENCE + 1));

            let ssh = Segment::new(talk.client, (talk.vip.ip(), 22).into(), ACK).frame();
            rig.run(Hook::Xdp, rig.on.front, &ssh).is(Action::Pass, Reason::NodePort, &ssh);
            let dns = Segment::new((bed::backend(family, 1).ip(), 53).into(), talk.snat, SYN | ACK).frame();
            rig.run(Hook::Xdp, rig.on.back, &dns).is(Action::Pass, Reason::NodePort, &dns);
        }
    });
}
