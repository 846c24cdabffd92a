//! Mode `dsr-ipip`: the packet as it was, but for its TTL, behind another IP header (RFC 2003, RFC
//! 2473, RFC 6040), in every mixture of families.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use etherparse::IpNumber;
use lb_common::{
    backend::{WAY_IPIP_V4, WAY_IPIP_V6},
    flow::{Family, any_addr},
    hash::slot_of,
    service::{MODE_DSR_IPIP, Stats},
    verdict::Reason,
};

use crate::{
    bed::{self, BACK_MAC, BACK_ROUTER_MAC, FRONT_MAC, backend_mac},
    frames::{ACK, Envelope, FIN, PSH, RST, SYN, Segment, icmp},
    rig::{Action, Hook, Rig, rig},
    setup::{self, RING_LEN, stats_of},
    tables::pair,
    talk::Talk,
};

/// The family of the service, and that of the tunnel.
const MIXED: [(Family, Family); 4] =
    [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6), (Family::V6, Family::V4)];

/// `web` over backends whose tunnels are of the family `outer`, and end at their addresses of that
/// family.
fn ipip(rig: &mut Rig, family: Family, outer: Family, backends: u8) {
    rig.nat(family, backends);
    rig.forget_syns();
    rig.set_service(family, |service| service.mode = MODE_DSR_IPIP);
    for number in 1..=backends {
        set_tunnel(rig, number.into(), outer, bed::backend(outer, number).ip());
    }
}

fn set_tunnel(rig: &mut Rig, index: u32, outer: Family, end: IpAddr) {
    rig.change_backend(index, |backend| {
        backend.way = if outer == Family::V4 { WAY_IPIP_V4 } else { WAY_IPIP_V6 };
        backend.port_be = 80_u16.to_be();
        backend.tunnel = any_addr(end);
        backend.tunnel_source = any_addr(bed::snat(outer));
    });
}

/// The outer header of what goes to backend `number`, but for what it takes from the packet.
fn outer(family: Family, number: u8) -> Envelope {
    let mut envelope = Envelope::new(bed::snat(family), bed::backend(family, number).ip());
    (envelope.src_mac, envelope.dst_mac, envelope.id) = (BACK_MAC, backend_mac(number), 0);
    envelope
}

/// `segment` in the tunnel that `envelope` describes. The flow label carries the flow's hash (RFC
/// 6438), whose value is Weir's own affair.
fn tunnelled(rig: &mut Rig, mut envelope: Envelope, segment: &Segment) -> Vec<u8> {
    let (hash, _) = hashes(rig, segment);
    envelope.flow_label = hash as u32 & 0xf_ffff;
    envelope.class = segment.envelope.class;
    let inner = segment.clone().ttl(segment.envelope.ttl - 1);
    envelope.around(carried(&inner.envelope), &inner.envelope.packet(IpNumber::TCP, &inner.tcp()))
}

fn carried(inner: &Envelope) -> IpNumber {
    if inner.src.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 }
}

fn hashes(rig: &mut Rig, segment: &Segment) -> (u64, u64) {
    let (src, dst) = (segment.envelope.src, segment.envelope.dst);
    let flow = pair((src, segment.src_port).into(), (dst, segment.dst_port).into());
    rig.tables(Family::of(&src)).hashes(&setup::settings().hash_key, flow)
}

#[test]
fn every_packet_goes_to_its_slots_owner_in_a_tunnel_and_nothing_is_remembered() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 3);
            let mut wanted = Stats::default();
            for port in 5000..5020 {
                let talk = Talk::of(family, SocketAddr::new(bed::client(family).ip(), port), 1);
                let (hash, _) = hashes(rig, &talk.ask(SYN));
                let owner = (slot_of(hash, RING_LEN) % 3 + 1) as u8;
                for flags in [SYN, ACK, PSH | ACK, FIN | ACK, RST, SYN | ACK, 0] {
                    let segment = talk.ask(flags).timestamp(4).payload(b"odd");
                    let out = tunnelled(rig, outer(over, owner), &segment);
                    talk.show(rig, &segment).is(Action::Redirect, Reason::ToBackend, &out);
                    wanted.packets += 1;
                    wanted.bytes += segment.frame().len() as u64 - 14;
                }
            }
            assert_eq!(rig.counts(family), (0, 0));
            let seen = rig.service_stats(stats_of(family));
            assert_eq!((seen.packets, seen.bytes, seen.connections), (wanted.packets, wanted.bytes, 20));
            assert_eq!((1..=3).map(|index| rig.backend_stats(index).packets).sum::<u64>(), wanted.packets);
            rig.clear_stats();
        }
    });
}

#[test]
fn dscp_and_ecn_are_copied_whatever_they_are() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            let talk = Talk::new(family, 1);
            for class in 0..=255 {
                let segment = talk.ask(ACK).payload(b"data").with(|ip| ip.class = class);
                let out = tunnelled(rig, outer(over, 1), &segment);
                talk.show(rig, &segment).is(Action::Redirect, Reason::ToBackend, &out);
            }
        }
    });
}

#[test]
fn options_extensions_and_flow_labels_stay_and_padding_is_not_part_of_the_packet() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            let talk = Talk::new(family, 1);
            let rich = talk.ask(ACK).timestamp(5).with(|ip| match family {
                Family::V4 => ip.options = vec![1; 24],
                Family::V6 => {
                    ip.extensions = Some((0, vec![6, 0, 1, 4, 0, 0, 0, 0]));
                    ip.flow_label = 0x5_4321;
                }
            });
            for segment in [rich, talk.ask(ACK)] {
                let pad = |mut frame: Vec<u8>| {
                    frame.extend([0xaa; 6]);
                    frame
                };
                let out = pad(tunnelled(rig, outer(over, 1), &segment));
                let ran = rig.run(Hook::Xdp, rig.on.front, &pad(segment.frame()));
                ran.is(Action::Redirect, Reason::ToBackend, &out);
            }
        }
    });
}

#[test]
fn ttl_counts_the_balancer_once_and_the_tunnel_not() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            let talk = Talk::new(family, 1);
            for ttl in [2, 64, 255] {
                let segment = talk.ask(ACK).ttl(ttl);
                let out = tunnelled(rig, outer(over, 1), &segment);
                talk.show(rig, &segment).is(Action::Redirect, Reason::ToBackend, &out);
            }
            for ttl in [0, 1] {
                talk.show(rig, &talk.ask(ACK).ttl(ttl)).is_dropped(Reason::TtlExpired);
            }
        }
    });
}

#[test]
fn tunnel_ends_wherever_its_address_is_and_not_at_the_backends_own() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            let end = bed::routed_backend(over).ip();
            set_tunnel(rig, 1, over, end);
            let segment = Talk::new(family, 1).ask(ACK);
            let mut envelope = Envelope::new(bed::snat(over), end);
            (envelope.src_mac, envelope.dst_mac, envelope.id) = (BACK_MAC, BACK_ROUTER_MAC, 0);
            let out = tunnelled(rig, envelope, &segment);
            let ran = rig.run(Hook::Xdp, rig.on.front, &segment.frame());
            ran.is(Action::Redirect, Reason::ToBackend, &out);

            set_tunnel(rig, 1, over, bed::lost_backend(over).ip());
            rig.run(Hook::Xdp, rig.on.front, &segment.frame()).is_dropped(Reason::NoRoute);
        }
    });
}

#[test]
fn tunnel_through_the_interface_of_the_client_goes_out_there_again() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            set_tunnel(rig, 1, over, bed::front_backend(over).ip());
            let segment = Talk::new(family, 1).ask(ACK);
            let mut envelope = Envelope::new(bed::snat(over), bed::front_backend(over).ip());
            (envelope.src_mac, envelope.dst_mac, envelope.id) = (FRONT_MAC, bed::FRONT_BACKEND_MAC, 0);
            let out = tunnelled(rig, envelope, &segment);
            rig.run(Hook::Xdp, rig.on.front, &segment.frame()).is(Action::Tx, Reason::ToBackend, &out);
        }
    });
}

#[test]
fn outer_source_varies_by_flow_in_the_bits_that_the_operator_gives_and_stays_for_a_flow() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 1);
            let mut settings = setup::settings();
            (settings.vary_source_v4, settings.vary_source_v6) = (0xfff_u32.to_be(), 0xff_ffff_u32.to_be());
            rig.settings.set(0, settings, 0).unwrap();
            let prefix = bed::source_prefix(over);
            rig.change_backend(1, |backend| backend.tunnel_source = any_addr(prefix));
            let mut sources = BTreeSet::new();
            for port in 5000..5200 {
                let talk = Talk::of(family, SocketAddr::new(bed::client(family).ip(), port), 1);
                let mut first = None;
                for segment in [talk.ask(SYN), talk.ask(ACK).payload(b"data"), talk.ask(FIN | ACK)] {
                    let ran = talk.show(rig, &segment);
                    let source = source_of(&ran.frame);
                    let mut envelope = outer(over, 1);
                    envelope.src = source;
                    ran.is(Action::Redirect, Reason::ToBackend, &tunnelled(rig, envelope, &segment));
                    assert_eq!(*first.get_or_insert(source), source, "{segment:?}");
                    assert!(differ_only_behind(prefix, source, if over == Family::V4 { 20 } else { 104 }), "{source}");
                }
                sources.extend(first);
            }
            // 200 flows in 4,096 addresses: five or so meet.
            assert!(sources.len() > 180, "{family:?} in {over:?}: {} sources", sources.len());
        }
    });
}

/// The source of the outer header of a frame.
fn source_of(frame: &[u8]) -> IpAddr {
    match frame[12..14] {
        [0x08, 0x00] => <[u8; 4]>::try_from(&frame[26..30]).unwrap().into(),
        [0x86, 0xdd] => <[u8; 16]>::try_from(&frame[22..38]).unwrap().into(),
        _ => panic!("no IP packet: {frame:02x?}"),
    }
}

fn differ_only_behind(prefix: IpAddr, address: IpAddr, bits: u32) -> bool {
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => (prefix.to_bits() ^ address.to_bits()) >> (32 - bits) == 0,
        (IpAddr::V6(prefix), IpAddr::V6(address)) => (prefix.to_bits() ^ address.to_bits()) >> (128 - bits) == 0,
        _ => false,
    }
}

#[test]
fn tc_sends_in_the_same_tunnel_what_xdp_could_not() {
    rig(|rig| {
        for (family, over) in MIXED {
            // Nobody has resolved the first; XDP can't send to the second.
            let unreached = [
                (bed::silent_backend(over).ip(), Reason::NoNeighbour),
                (bed::side_backend(over).ip(), Reason::NoXdpWayOut),
            ];
            for (end, why) in unreached {
                ipip(rig, family, over, 1);
                set_tunnel(rig, 1, over, end);
                for flags in [ACK, PSH | ACK] {
                    let segment = Talk::new(family, 1).ask(flags).payload(b"data").with(|ip| ip.class = 0xb9);
                    let frame = segment.frame();
                    rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Pass, why, &frame);
                    let mut envelope = Envelope::new(bed::snat(over), end);
                    // MAC addresses are left to the kernel.
                    (envelope.src_mac, envelope.dst_mac) = (segment.envelope.src_mac, segment.envelope.dst_mac);
                    envelope.id = 0;
                    let out = tunnelled(rig, envelope, &segment);
                    let ran = rig.run(Hook::Ingress, rig.on.front, &frame);
                    ran.is(Action::Redirect, Reason::ToBackendByTc, &out);
                }
                let spent = Talk::new(family, 1).ask(ACK).ttl(1).frame();
                rig.run(Hook::Ingress, rig.on.front, &spent).is_dropped(Reason::TtlExpired);
            }
        }
    });
}

#[test]
fn icmp_errors_about_a_flow_reach_its_backend_in_the_tunnel_unchanged() {
    rig(|rig| {
        for (family, over) in MIXED {
            ipip(rig, family, over, 3);
            let talk = Talk::new(family, 1);
            let (hash, _) = hashes(rig, &talk.ask(ACK));
            let owner = (slot_of(hash, RING_LEN) % 3 + 1) as u8;
            let answer = Segment::new(talk.vip, talk.client, ACK).payload(&[7; 600]);
            let quote = answer.envelope.packet(IpNumber::TCP, &answer.tcp());
            let header = if family == Family::V4 { 20 } else { 40 };
            let (kind, code, protocol) =
                if family == Family::V4 { (3, 4, IpNumber::ICMP) } else { (2, 0, IpNumber::IPV6_ICMP) };
            for quoted in [8, 20, 400] {
                let mut error = Envelope::new(bed::other_client(family).ip(), talk.vip.ip());
                let message = |envelope: &Envelope| {
                    let frame = icmp(envelope, kind, code, [0, 0, 5, 0], &quote[..header + quoted]);
                    frame[14 + header..].to_vec()
                };
                let frame = error.around(protocol, &message(&error));
                error.ttl -= 1;
                let inner = error.packet(protocol, &message(&error));
                let mut envelope = outer(over, owner);
                envelope.flow_label = hash as u32 & 0xf_ffff;
                let out = envelope.around(carried(&error), &inner);
                rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Redirect, Reason::IcmpError, &out);
            }
        }
    });
}
