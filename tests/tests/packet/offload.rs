//! Frames larger than a page, and frames whose checksums and segments the kernel has not made yet.

use std::net::IpAddr;

use aya::programs::{SchedClassifier, TcAttachType, tc};
use etherparse::checksum::Sum16BitWords;
use lb_common::{flow::Family, limits::program, verdict::Reason};
use lb_userspace::dataplane::hooks::TcHook;

use crate::{
    bed::{self, BACK_MAC, CLIENT_MAC, FRONT_MAC, backend_mac},
    frames::{self, ACK, Envelope, PSH, SYN, Segment},
    rig::{Action, Hook, Rig, rig},
    table::Case,
    talk::{Talk, reset_of},
    wire::{Offload, Wire},
};

fn jumbo() {
    let lines = ["front", "front-far", "back", "back-far"].map(|name| format!("link set {name} mtu 9000\n"));
    bed::batch(&lines.concat());
}

#[test]
fn jumbo_frames_of_several_buffers_are_forwarded_reset_and_answered() {
    rig(|rig| {
        jumbo();
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let data: Vec<u8> = (0..8800).map(|byte| (byte % 251) as u8).collect();
            talk.send(rig, &talk.ask(PSH | ACK).payload(&data));
            talk.reply(rig, &talk.answer(PSH | ACK).payload(&data));

            let lost = talk.ask(PSH | ACK).between(talk.client, (talk.vip.ip(), 81).into()).payload(&data);
            let ran = rig.run(Hook::Xdp, rig.on.front, &lost.frame());
            ran.is(Action::Tx, Reason::PortNotServed, &reset_of(&lost).frame());

            let mut envelope = Envelope::new(talk.client.ip(), talk.vip.ip());
            let (request, reply) = if family == Family::V4 { (8, 0) } else { (128, 129) };
            let frame = frames::icmp(&envelope, request, 0, [0, 1, 0, 2], &data);
            (envelope.src, envelope.dst) = (envelope.dst, envelope.src);
            (envelope.src_mac, envelope.dst_mac) = (FRONT_MAC, CLIENT_MAC);
            let out = frames::icmp(&envelope, reply, 0, [0, 1, 0, 2], &data);
            rig.check_at_xdp(&[Case::answers("echo", frame, Reason::Echo, out)]);
        }
    });
}

/// Bytes of data in a segment.
const MSS: usize = 1400;

/// Where TCP begins.
fn l4(segment: &Segment) -> usize {
    segment.frame().len() - segment.tcp().len()
}

/// What a checksum that is still to be made starts from: the sum of the pseudo header.
fn pseudo_sum(segment: &Segment) -> [u8; 2] {
    let len = segment.tcp().len() as u16;
    let sum = match (segment.envelope.src, segment.envelope.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Sum16BitWords::new().add_4bytes(src.octets()).add_4bytes(dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Sum16BitWords::new().add_16bytes(src.octets()).add_16bytes(dst.octets()),
        _ => panic!("two families in {segment:?}"),
    };
    let sum = sum.add_2bytes([0, 6]).add_2bytes(len.to_be_bytes());
    (!sum.ones_complement()).to_ne_bytes()
}

/// The frame of `segment` with its checksum only begun.
fn begun(segment: &Segment) -> Vec<u8> {
    let (mut frame, at) = (segment.frame(), l4(segment) + 16);
    frame[at..at + 2].copy_from_slice(&pseudo_sum(segment));
    frame
}

/// Sends a segment with offloads left to do into the far end of `from`; at the far end of `to` the
/// same must be left to do on `out`.
#[track_caller]
fn crosses(from: &str, to: &str, segment: &Segment, out: &Segment) {
    let mut receiver = Wire::receiver(to);
    let start = l4(segment) as u16;
    let is_v4 = segment.envelope.src.is_ipv4();
    let header_len = start + (segment.tcp().len() - segment.payload.len()) as u16;
    let offload =
        Offload { checksum: Some((start, 16)), segments: (segment.payload.len() > MSS).then_some((is_v4, MSS as u16)) };
    Wire::sender(from).send(offload, header_len, &begun(segment));
    let wanted = begun(out);
    let frame = receiver.receive(|frame| frame[..14] == wanted[..14]);
    let differs = frame.iter().zip(&wanted).position(|(a, b)| a != b);
    assert!(frame == wanted, "{} bytes, {} are expected; they differ at {differs:?}", frame.len(), wanted.len());
    // And with its checksum made it is the right one.
    let made = Sum16BitWords::new().add_slice(&frame[l4(out)..]).ones_complement().to_ne_bytes();
    assert_eq!(made, out.frame()[l4(out) + 16..l4(out) + 18]);
}

/// Puts the programs at TC, and none at XDP: nothing else sends what comes in.
fn attach(rig: &mut Rig) {
    for interface in ["front", "back"] {
        if TcHook::of_kernel() == TcHook::Clsact {
            tc::qdisc_add_clsact(interface).unwrap();
        }
        for (name, hook) in [(program::INGRESS, TcAttachType::Ingress), (program::EGRESS, TcAttachType::Egress)] {
            let classifier: &mut SchedClassifier = rig.ebpf.program_mut(name).unwrap().try_into().unwrap();
            classifier.attach(interface, hook).unwrap();
        }
    }
}

#[test]
fn partial_checksums_and_super_packets_cross_tc_and_stay_what_they_are() {
    rig(|rig| {
        attach(rig);
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let ask = |segment: Segment| {
                let out = talk.asked(&segment).macs(BACK_MAC, backend_mac(1));
                crosses("front-far", "back-far", &segment, &out);
            };
            let answer = |segment: Segment| {
                let out = talk.answered(&segment).macs(FRONT_MAC, CLIENT_MAC);
                crosses("back-far", "front-far", &segment, &out);
            };
            ask(talk.ask(SYN).timestamp(5));
            answer(talk.answer(SYN | ACK).timestamp(6));
            ask(talk.ask(ACK).timestamp(7));
            assert_eq!(rig.counts(family), (0, 2));
            for size in [1, MSS, MSS + 1, 9_001, 60_000] {
                let data: Vec<u8> = (0..size).map(|byte| (byte % 253) as u8).collect();
                ask(talk.ask(PSH | ACK).timestamp(8).payload(&data));
                answer(talk.answer(PSH | ACK).timestamp(9).payload(&data));
            }
        }
    });
}
