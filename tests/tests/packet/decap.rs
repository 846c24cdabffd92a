//! What arrives in a tunnel at a node that has backends: a peer's is taken out and left to the
//! stack, anybody else's is left as it is.

use std::net::{IpAddr, SocketAddr};

use etherparse::IpNumber;
use lb_common::{flow::Family, service::address, settings::Settings, verdict::Reason};

use crate::{
    bed::{self, BACK_MAC, BACK_ROUTER_MAC},
    frames::{ACK, Envelope, SYN, Segment, tagged, udp},
    rig::{Action, Hook, Ran, Rig, rig},
    setup,
    talk::Talk,
};

/// The family of the tunnel, and that of what is in it.
const MIXED: [(Family, Family); 4] =
    [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6), (Family::V6, Family::V4)];

/// Stands before a packet that was taken out, as metadata, so that weir_ingress knows it: see
/// decap.rs of lb-ebpf.
const MARK: [u8; 4] = 0x5745_4952_u32.to_ne_bytes();

/// A node whose tunnels end at its address on `back`; its peers are `10.9.1.0/24` and
/// `fd09:1::/64`.
fn node(rig: &mut Rig) {
    rig.settings.set(0, Settings { flags: Settings::FLAG_TUNNEL, ..setup::settings() }, 0).unwrap();
    for family in Family::BOTH {
        rig.set_address(bed::snat(family), address::TUNNEL);
        let (prefix, bits) = if family == Family::V4 { ("10.9.1.0", 24) } else { ("fd09:1::", 64) };
        rig.tables(family).add_peers(prefix.parse().unwrap(), bits);
    }
}

fn either(family: Family, v4: &str, v6: &str) -> IpAddr {
    if family == Family::V4 { v4 } else { v6 }.parse().unwrap()
}

fn peer(family: Family) -> IpAddr {
    either(family, "10.9.1.77", "fd09:1::77")
}

/// The outer header of what a peer sends.
fn outer(family: Family) -> Envelope {
    let mut envelope = Envelope::new(peer(family), bed::snat(family));
    (envelope.src_mac, envelope.dst_mac) = (BACK_ROUTER_MAC, BACK_MAC);
    envelope
}

/// A client's packet.
fn segment(family: Family) -> Segment {
    Talk::new(family, 1).ask(ACK).timestamp(3).payload(b"data").ttl(61).macs(BACK_ROUTER_MAC, BACK_MAC)
}

fn packet(segment: &Segment) -> Vec<u8> {
    segment.envelope.packet(IpNumber::TCP, &segment.tcp())
}

const fn protocol(inner: Family) -> IpNumber {
    match inner {
        Family::V4 => IpNumber::IPV4,
        Family::V6 => IpNumber::IPV6,
    }
}

fn arrives(rig: &Rig, frame: &[u8]) -> Ran {
    rig.run(Hook::Xdp, rig.on.back, frame)
}

#[track_caller]
fn is_taken_out(ran: &Ran, frame: &[u8]) {
    ran.is(Action::Pass, Reason::Decapsulated, &[&MARK[..], frame].concat());
}

#[track_caller]
fn is_left(rig: &Rig, reason: Reason, name: &str, frame: &[u8]) {
    let problems = arrives(rig, frame).differs(Action::Pass, &[reason.name()], Some(frame));
    assert_eq!(problems, "", "{name}");
}

#[test]
fn packet_of_a_peer_is_taken_out_whole_and_goes_up_the_stack() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            for inner in [segment(family), Talk::new(family, 1).ask(SYN).macs(BACK_ROUTER_MAC, BACK_MAC)] {
                let frame = outer(over).around(protocol(family), &packet(&inner));
                is_taken_out(&arrives(rig, &frame), &inner.frame());
                let pad = |mut frame: Vec<u8>| {
                    frame.extend([0xaa; 6]);
                    frame
                };
                is_taken_out(&arrives(rig, &pad(frame)), &pad(inner.frame()));
            }
            let talk = Talk::new(family, 1);
            let mut inner = udp(talk.client, talk.vip, b"not TCP");
            let frame = outer(over).around(protocol(family), &inner[14..]);
            inner[..12].copy_from_slice(&frame[..12]);
            is_taken_out(&arrives(rig, &frame), &inner);
        }
    });
}

/// Options of a SYN: an MSS behind so many that do nothing, and SACK permitted.
fn mss(mss: u16, before: usize) -> Vec<u8> {
    let mut options = vec![1; before];
    options.extend([2, 4]);
    options.extend(mss.to_be_bytes());
    options.extend([4, 2]);
    options.resize(options.len().next_multiple_of(4), 0);
    options
}

#[test]
fn syn_ack_of_what_came_in_a_tunnel_tells_an_mss_that_fits_into_it() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            let talk = Talk::new(family, 1);
            let leaves = |rig: &Rig, segment: &Segment| rig.run_only(Hook::Egress, rig.on.back, &segment.frame());
            let answer = |flags, options: &[u8]| Segment::new(talk.vip, talk.client, flags).options(options);
            let syn = talk.ask(SYN).macs(BACK_ROUTER_MAC, BACK_MAC);
            arrives(rig, &outer(over).around(protocol(family), &packet(&syn)));
            let size = |family| if family == Family::V4 { 20_u16 } else { 40 };
            let most = 1500 - size(over) - size(family) - 20;
            for before in 0..3 {
                for (told, becomes) in [(1460, most), (9000, most), (most + 1, most), (most, most), (536, 536)] {
                    let (action, frame) = leaves(rig, &answer(SYN | ACK, &mss(told, before)));
                    assert_eq!(action, Action::Unspec);
                    assert_eq!(frame, answer(SYN | ACK, &mss(becomes, before)).frame(), "{told} behind {before}");
                }
            }
            let elsewhere = SocketAddr::new(bed::backend(family, 1).ip(), 80);
            for (name, segment) in [
                ("no MSS", answer(SYN | ACK, &[1; 8])),
                ("an option that is cut short", answer(SYN | ACK, &[1, 1, 1, 2])),
                ("an option without a length", answer(SYN | ACK, &[8, 0, 2, 4, 0xff, 0xff, 0, 0])),
                ("a SYN of this node's own", answer(SYN, &mss(9000, 0))),
                ("data", answer(ACK, &mss(9000, 0))),
                (
                    "from an address that no tunnel leads to",
                    answer(SYN | ACK, &mss(9000, 0)).between(elsewhere, talk.client),
                ),
            ] {
                assert_eq!(leaves(rig, &segment), (Action::Unspec, segment.frame()), "{name}");
            }
            // Without tunnels nobody looks.
            rig.change_settings(|settings| settings.flags = 0);
            let segment = answer(SYN | ACK, &mss(9000, 0));
            assert_eq!(leaves(rig, &segment), (Action::Unspec, segment.frame()));
            rig.change_settings(|settings| settings.flags = Settings::FLAG_TUNNEL);
        }
    });
}

#[test]
fn outer_options_and_extension_headers_are_taken_off_too() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            let inner = segment(family);
            let mut outer = outer(over);
            match over {
                Family::V4 => outer.options = vec![1; 40],
                // What Linux sends: the tunnel encapsulation limit (RFC 2473, section 5.1), in
                // destination options.
                Family::V6 => outer.extensions = Some((60, vec![protocol(family).0, 0, 4, 1, 4, 1, 1, 0])),
            }
            is_taken_out(&arrives(rig, &outer.around(protocol(family), &packet(&inner))), &inner.frame());
        }
    });
}

#[test]
fn congestion_marks_on_the_way_reach_the_receiver_as_rfc_6040_says() {
    const NOT_ECT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    // Figure 4 of RFC 6040: what arrives on the inner header; what goes on if the outer one says
    // NOT_ECT, ECT0, ECT1, CE.
    const FIGURE: [(u8, [Option<u8>; 4]); 4] = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
        (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    const DSCP: u8 = 46 << 2;
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            for (arrived, row) in FIGURE {
                for (on_the_way, goes_on) in [NOT_ECT, ECT0, ECT1, CE].into_iter().zip(row) {
                    let inner = segment(family).with(|ip| ip.class = DSCP | arrived);
                    let mut outer = outer(over);
                    // The network may have changed the outer DSCP: the inner one stays.
                    outer.class = 10 << 2 | on_the_way;
                    let ran = arrives(rig, &outer.around(protocol(family), &packet(&inner)));
                    match goes_on {
                        Some(ecn) => is_taken_out(&ran, &inner.with(|ip| ip.class = DSCP | ecn).frame()),
                        None => ran.is_dropped(Reason::BadInner),
                    }
                }
            }
        }
    });
}

#[test]
fn tunnel_packet_of_anybody_else_passes_to_the_stack_as_it_is() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            let inner = packet(&segment(family));
            let strangers = [
                ("beside the prefix", either(over, "10.9.2.1", "fd09:1:0:1::1")),
                ("a backend", bed::backend(over, 1).ip()),
                ("the node itself", bed::snat(over)),
            ];
            for (name, src) in strangers {
                let stranger = Envelope { src, ..outer(over) };
                is_left(rig, Reason::NotPeer, name, &stranger.around(protocol(family), &inner));
            }
            let last = Envelope { src: either(over, "10.9.1.255", "fd09:1::ffff:ffff:ffff:ffff"), ..outer(over) };
            is_taken_out(&arrives(rig, &last.around(protocol(family), &inner)), &segment(family).frame());
        }
    });
}

#[test]
fn whatever_else_a_peer_sends_passes_to_the_stack_as_it_is() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            let inner = packet(&segment(family));
            let elsewhere = Envelope { dst: bed::other_snat(over), ..outer(over) };
            is_left(rig, Reason::NotVip, "another address", &elsewhere.around(protocol(family), &inner));
            is_left(rig, Reason::NotVip, "another protocol", &outer(over).around(IpNumber::GRE, &inner));
            let ssh = Segment::new((peer(over), 4000).into(), (bed::snat(over), 22).into(), ACK).frame();
            is_left(rig, Reason::NotVip, "TCP", &ssh);
            let vlan = tagged(&outer(over).around(protocol(family), &inner), &[(0x8100, 7)]);
            is_left(rig, Reason::NotVip, "a VLAN", &vlan);
            let fragment = match over {
                Family::V4 => Envelope { fragment: (0, true), ..outer(over) },
                Family::V6 => {
                    Envelope { extensions: Some((44, vec![protocol(family).0, 0, 0, 1, 0, 0, 0, 9])), ..outer(over) }
                }
            };
            is_left(rig, Reason::NotVip, "a fragment", &fragment.around(protocol(family), &inner));
        }
    });
}

#[test]
fn what_is_no_whole_packet_inside_is_dropped() {
    rig(|rig| {
        node(rig);
        for (over, family) in MIXED {
            let whole = packet(&segment(family));
            let header = if family == Family::V4 { 20 } else { 40 };
            let mut broken: Vec<(String, Vec<u8>)> = [0, 1, header - 1, header, header + 1, whole.len() - 1]
                .map(|len| (format!("cut after {len} bytes"), whole[..len].to_vec()))
                .into();
            let mut change = |name: &str, at: usize, value: u8| {
                let mut packet = whole.clone();
                packet[at] = value;
                broken.push((name.to_owned(), packet));
            };
            match family {
                Family::V4 => {
                    change("a header of four words", 0, 0x44);
                    change("version 6 by protocol 4", 0, 0x65);
                    change("a length below its header", 3, 19);
                    change("a length of more", 3, whole.len() as u8 + 1);
                }
                Family::V6 => {
                    change("version 4 by protocol 41", 0, 0x40);
                    change("a length of more", 5, whole.len() as u8 - 39);
                }
            }
            for (name, packet) in broken {
                let frame = outer(over).around(protocol(family), &packet);
                let ran = arrives(rig, &frame);
                assert_eq!(ran.differs(Action::Drop, &["bad_inner"], None), "", "{over:?} around {family:?}: {name}");
                // What is behind the outer packet is no part of it.
                let ran = arrives(rig, &[&frame[..], &[0; 64]].concat());
                assert_eq!(ran.differs(Action::Drop, &["bad_inner"], None), "", "{name}, padded");
            }
        }
    });
}

#[test]
fn without_peers_nothing_is_taken_out() {
    rig(|rig| {
        rig.settings.set(0, setup::settings(), 0).unwrap();
        for (over, family) in MIXED {
            let frame = outer(over).around(protocol(family), &packet(&segment(family)));
            is_left(rig, Reason::NotVip, "no peers", &frame);
        }
    });
}
