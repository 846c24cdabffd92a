//! Frames to a VIP that are cut short, contradict themselves or come in pieces: a stated rule and a
//! counter each.

use etherparse::IpNumber;
use lb_common::{flow::Family, verdict::Reason};

use crate::{
    bed::{self, backend_mac},
    frames::{self, ACK, Envelope, FIN, RST, SYN, Segment, tagged},
    rig::{Action, Hook, rig},
    table::Case,
    talk::Talk,
};

#[test]
fn vip_frame_cut_short_anywhere_is_dropped_or_passed_and_never_sent_on() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let extension = vec![6, 0, 1, 4, 0, 0, 0, 0];
            let plain = talk.ask(SYN).timestamp(9).payload(b"data");
            let rich = plain.clone().with(|ip| match family {
                Family::V4 => ip.options = vec![1; 8],
                Family::V6 => ip.extensions = Some((0, extension)),
            });
            let mut echo = Envelope::new(talk.client.ip(), talk.vip.ip());
            echo.ttl = 3;
            let echo = frames::icmp(&echo, if family == Family::V4 { 8 } else { 128 }, 0, [0; 4], b"ping");
            let fixed_header = if family == Family::V4 { 34 } else { 54 };
            for (name, frame) in [("plain", plain.frame()), ("with options", rich.frame()), ("echo", echo)] {
                // The kernel runs no program on less than an Ethernet header.
                for len in 14..frame.len() {
                    let cut = &frame[..len];
                    for hook in [Hook::Xdp, Hook::Ingress] {
                        // For TC the kernel makes no test frame without a whole IP header.
                        if hook == Hook::Ingress && len < fixed_header {
                            continue;
                        }
                        let ran = rig.run(hook, rig.on.front, cut);
                        let problems = if len < fixed_header {
                            ran.differs(Action::Pass, &["not_ip"], Some(cut))
                        } else {
                            ran.differs(Action::Drop, &["malformed"], None)
                        };
                        assert!(problems.is_empty(), "{name}, {len} of {} bytes at {hook:?}: {problems}", frame.len());
                    }
                }
            }
            assert_eq!(rig.counts(family), (0, 0));
        }
    });
}

/// A frame whose bytes at `at` are replaced; checksums are not looked at by anything on the way.
fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn headers_that_contradict_themselves_are_dropped() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let frame = talk.ask(SYN).payload(b"data").frame();
            let l4 = if family == Family::V4 { 34 } else { 54 };
            let mut cases = Vec::new();
            let mut malformed = |name: &str, frame| cases.push(Case::drops(name, frame, Reason::Malformed));
            match family {
                Family::V4 => {
                    for ihl in 0..5 {
                        malformed(&format!("header length {ihl}"), patched(&frame, 14, &[0x40 | ihl]));
                    }
                    for version in [0, 3, 5, 6, 15] {
                        malformed(&format!("version {version}"), patched(&frame, 14, &[version << 4 | 5]));
                    }
                    malformed("header length above the packet's", patched(&frame, 14, &[0x4f]));
                    for len in [0_u16, 19, 20, 39, 45, 1500, 65_535] {
                        malformed(&format!("total length {len}"), patched(&frame, 16, &len.to_be_bytes()));
                    }
                }
                Family::V6 => {
                    for version in [0, 4, 5, 7, 15] {
                        malformed(&format!("version {version}"), patched(&frame, 14, &[version << 4]));
                    }
                    for len in [0_u16, 1, 19, 25, 1500, 65_535] {
                        malformed(&format!("payload length {len}"), patched(&frame, 18, &len.to_be_bytes()));
                    }
                    // Behind the fixed header there is TCP: taken for an extension header it is
                    // longer than the packet.
                    malformed("extension header beyond the end", patched(&frame, 20, &[60]));
                    let long = |length| {
                        talk.ask(SYN).with(|ip| ip.extensions = Some((60, vec![6, length, 1, 4, 0, 0, 0, 0]))).frame()
                    };
                    malformed("extension header longer than the packet", long(255));
                    malformed("extension header that swallows TCP", long(2));
                }
            }
            for words in 0..5 {
                malformed(&format!("data offset {words}"), patched(&frame, l4 + 12, &[words << 4]));
            }
            malformed("data offset beyond the packet", patched(&frame, l4 + 12, &[0x70]));
            for flags in [SYN | FIN, SYN | RST, SYN | FIN | ACK, SYN | RST | ACK, SYN | FIN | RST, 0x3f] {
                malformed(&format!("flags {flags:#x}"), patched(&frame, l4 + 13, &[flags]));
            }
            rig.check_at_xdp(&cases);
            for case in &cases {
                let ran = rig.run(Hook::Ingress, rig.on.front, &case.frame);
                // At TC a length of zero is that of a BIG TCP packet.
                if !case.name.ends_with("length 0") {
                    assert_eq!(ran.differs(Action::Drop, &["malformed"], None), "", "{} at TC", case.name);
                }
            }
            assert_eq!(rig.counts(family).1, 0);
        }
    });
}

#[test]
fn fragments_to_a_vip_are_dropped() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let segment = Talk::new(family, 1).ask(SYN);
            let fragment = |offset: u16, more: bool| {
                segment.clone().with(|ip| match family {
                    Family::V4 => ip.fragment = (offset, more),
                    Family::V6 => {
                        let word = (offset << 3 | u16::from(more)).to_be_bytes();
                        ip.extensions = Some((44, vec![6, 0, word[0], word[1], 0, 0, 0, 9]));
                    }
                })
            };
            let cases: Vec<Case> =
                [("first", 0, true), ("middle", 100, true), ("last", 200, false), ("farthest", 0x1fff, false)]
                    .map(|(name, offset, more)| Case::drops(name, fragment(offset, more).frame(), Reason::Fragment))
                    .into();
            rig.check_at_xdp(&cases);
            for case in &cases {
                let ran = rig.run(Hook::Ingress, rig.on.front, &case.frame);
                assert_eq!(ran.differs(Action::Drop, &["fragment"], None), "", "{} at TC", case.name);
            }
        }
    });
}

/// Extension headers of eight bytes each, by their numbers; the last one leads to TCP.
fn chain(numbers: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (position, number) in numbers.iter().enumerate() {
        let next = numbers.get(position + 1).copied().unwrap_or(6);
        bytes.extend(match number {
            // Routing: type 2, no segments left.
            43 => [next, 0, 2, 0, 0, 0, 0, 0],
            // An atomic fragment (RFC 6946).
            44 => [next, 0, 0, 0, 0, 0, 0, 1],
            // Options: PadN.
            _ => [next, 0, 1, 4, 0, 0, 0, 0],
        });
    }
    (numbers[0], bytes)
}

#[test]
fn up_to_six_extension_headers_are_looked_through_and_more_dropped() {
    rig(|rig| {
        rig.nat(Family::V6, 1);
        let client = |number: u16| (bed::client(Family::V6).ip(), 5000 + number).into();
        let chains: [&[u8]; 9] = [
            &[0],
            &[43],
            &[44],
            &[60],
            &[0, 60],
            &[0, 60, 43, 44],
            &[0, 60, 43, 44, 60, 60],
            &[60, 60, 60, 60, 60, 60],
            &[44, 44, 44, 44, 44, 44],
        ];
        for (number, numbers) in (0..).zip(chains) {
            let talk = Talk::of(Family::V6, client(number), 1);
            let syn = talk.ask(SYN).with(|ip| ip.extensions = Some(chain(numbers)));
            talk.send(rig, &syn);
            talk.reply(rig, &talk.answer(SYN | ACK));
        }
        let long = talk_with(&[6, 2, 1, 20].iter().copied().chain([0; 20]).collect::<Vec<u8>>());
        Talk::new(Family::V6, 1).send(rig, &long);

        let over: [&[u8]; 3] = [&[60; 7], &[0, 60, 43, 44, 60, 60, 60], &[44; 7]];
        let mut cases: Vec<Case> = over
            .map(|numbers| {
                let frame = Talk::new(Family::V6, 1).ask(SYN).with(|ip| ip.extensions = Some(chain(numbers))).frame();
                Case::drops(format!("{numbers:?}"), frame, Reason::ExtensionHeaders)
            })
            .into();
        let routed =
            Talk::new(Family::V6, 1).ask(SYN).with(|ip| ip.extensions = Some((43, vec![6, 0, 4, 1, 0, 0, 0, 0])));
        cases.push(Case::drops("segments left", routed.frame(), Reason::ExtensionHeaders));
        rig.check_at_xdp(&cases);
    });
}

/// A SYN behind destination options of these bytes.
fn talk_with(options: &[u8]) -> Segment {
    Talk::new(Family::V6, 1).ask(SYN).with(|ip| ip.extensions = Some((60, options.to_vec())))
}

#[test]
fn tagged_frames_to_a_vip_are_left_to_the_vlan_and_counted() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let tags: [&[(u16, u16)]; 4] =
                [&[(0x8100, 5)], &[(0x88a8, 5)], &[(0x88a8, 5), (0x8100, 6)], &[(0x8100, 5), (0x8100, 6)]];
            let mut cases = Vec::new();
            for tags in tags {
                for (name, frame) in [
                    ("SYN", talk.ask(SYN).frame()),
                    ("data", talk.ask(ACK).payload(b"data").frame()),
                    ("UDP", frames::udp(talk.client, talk.vip, b"hello")),
                    ("GRE", Envelope::new(talk.client.ip(), talk.vip.ip()).around(IpNumber::GRE, &[0; 20])),
                ] {
                    cases.push(Case::passes(format!("{name} behind {tags:x?}"), tagged(&frame, tags), Reason::VlanTag));
                }
                let answer = talk.answer(ACK).macs(backend_mac(1), bed::BACK_MAC).frame();
                cases.push(Case::passes(format!("answer behind {tags:x?}"), tagged(&answer, tags), Reason::NotVip));
            }
            rig.check_at_xdp(&cases);
            rig.check_left_alone_at_tc(&cases);
        }
    });
}
