//! `source: keep` and backends on this node: the client's address stays, and what the backend
//! answers is known by its source.

use std::net::SocketAddr;

use lb_common::{backend::Backend, flow::Family, service::address, settings::Settings, verdict::Reason};

use crate::{
    bed::{self, CLIENT_MAC, FRONT_MAC},
    frames::{self, ACK, FIN, PSH, RST, SYN, Segment},
    rig::{Action, Hook, Rig, rig},
    setup::stats_of,
    tables::Table,
    talk::Talk,
};

/// A service whose backend sees the client's own address and port.
fn keeping(rig: &mut Rig, family: Family) -> Talk {
    rig.nat(family, 1);
    rig.change_settings(|settings| settings.flags = Settings::FLAG_KEEP_SOURCE);
    rig.change_backend(1, |backend| backend.flags |= Backend::FLAG_KEEP_SOURCE);
    rig.set_address(bed::backend(family, 1).ip(), address::KEEP_SOURCE);
    let talk = Talk::new(family, 1);
    Talk { snat: talk.client, ..talk }
}

#[test]
fn backend_sees_the_clients_address_and_its_answers_come_from_the_vip() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = keeping(rig, family);
            talk.handshake(rig);
            assert_eq!(rig.counts(family), (0, 2));
            talk.send(rig, &talk.ask(PSH | ACK).payload(b"question"));
            talk.reply(rig, &talk.answer(PSH | ACK).payload(b"answer"));
            talk.send(rig, &talk.ask(FIN | ACK));
            talk.reply(rig, &talk.answer(FIN | ACK));

            // The port is kept although the pool does not have it.
            let other = Talk::of(family, (talk.client.ip(), 40_000).into(), 1);
            Talk { snat: other.client, ..other }.handshake(rig);
        }
    });
}

#[test]
fn what_else_that_backend_sends_passes_unchanged() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = keeping(rig, family);
            talk.handshake(rig);
            let (from, to) = (talk.backend, talk.client);
            let other = |port| Segment::new((from.ip(), port).into(), to, ACK).payload(b"data").frame();
            let frames = [
                ("another port", other(22)),
                ("UDP", frames::udp(from, to, b"dns")),
                ("a packet of no flow", Segment::new(from, (to.ip(), 9).into(), ACK).frame()),
                ("impossible flags", Segment::new(from, to, SYN | FIN | RST).frame()),
            ];
            for (name, frame) in frames {
                let ran = rig.run(Hook::Xdp, rig.on.back, &frame);
                assert_eq!(ran.differs(Action::Pass, &["not_vip"], Some(&frame)), "", "{name}");
                for hook in [Hook::Ingress, Hook::Egress] {
                    let ran = rig.run(hook, rig.on.front, &frame);
                    assert_eq!(ran.differs(Action::Unspec, &[], Some(&frame)), "", "{name} at {hook:?}");
                }
            }
        }
    });
}

#[test]
fn answer_that_comes_in_where_weir_is_not_gets_the_vip_at_egress() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = keeping(rig, family);
            talk.send(rig, &talk.ask(SYN));
            // The router has set MAC addresses and TTL; they stay.
            let leaving = |flags| talk.answer(flags).macs(FRONT_MAC, CLIENT_MAC).ttl(63);
            let answer = leaving(SYN | ACK).timestamp(8);
            let ran = rig.run(Hook::Egress, rig.on.front, &answer.frame());
            let out = answer.clone().between(talk.vip, talk.client);
            ran.is(Action::Unspec, Reason::ToClientByTc, &out.frame());

            talk.send(rig, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
            let answer = leaving(PSH | ACK).payload(b"an odd answer");
            let ran = rig.run(Hook::Egress, rig.on.front, &answer.frame());
            ran.is(Action::Unspec, Reason::ToClientByTc, &answer.clone().between(talk.vip, talk.client).frame());
            let stats = rig.service_stats(stats_of(family));
            assert_eq!((stats.reply_packets, stats.connections), (2, 1));

            // What goes to the backend is no answer.
            let asked = talk.asked(&talk.ask(ACK)).frame();
            let ran = rig.run(Hook::Egress, rig.on.back, &asked);
            assert_eq!(ran.differs(Action::Unspec, &[], Some(&asked)), "");
        }
    });
}

/// A service whose backend is an address of this node.
fn local(rig: &mut Rig, family: Family) -> Talk {
    let mut talk = keeping(rig, family);
    talk.backend = bed::local_backend(family);
    let mut entry = rig.backend_entry(family, talk.backend);
    entry.flags |= Backend::FLAG_LOCAL;
    rig.set_backend(1, entry);
    rig.set_address(talk.backend.ip(), address::KEEP_SOURCE);
    talk
}

#[test]
fn packet_for_a_backend_on_this_node_goes_up_the_stack_with_only_its_destination_changed() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = local(rig, family);
            let rewritten = |segment: &Segment| segment.clone().between(talk.client, talk.backend).frame();
            let syn = talk.ask(SYN).timestamp(1);
            let ran = talk.show(rig, &syn);
            ran.is(Action::Pass, Reason::LocalBackend, &rewritten(&syn));
            // TC sees what XDP has made of it, and leaves it.
            let ran = rig.run(Hook::Ingress, rig.on.front, &ran.frame);
            assert_eq!(ran.differs(Action::Unspec, &[], Some(&rewritten(&syn))), "");

            let answer = talk.answer(SYN | ACK).macs(FRONT_MAC, CLIENT_MAC);
            let ran = rig.run(Hook::Egress, rig.on.front, &answer.frame());
            ran.is(Action::Unspec, Reason::ToClientByTc, &answer.clone().between(talk.vip, talk.client).frame());

            let ack = talk.ask(ACK).ttl(1);
            talk.show(rig, &ack).is(Action::Pass, Reason::LocalBackend, &rewritten(&ack));
            assert_eq!(rig.counts(family), (0, 2));
            assert!(rig.flow(family, Table::Established, talk.forward()).is_some());
        }
    });
}

#[test]
fn without_such_backends_egress_looks_at_nothing() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = keeping(rig, family);
            talk.handshake(rig);
            rig.change_settings(|settings| settings.flags = 0);
            let answer = talk.answer(ACK).frame();
            for (hook, action) in [(Hook::Egress, Action::Unspec), (Hook::Ingress, Action::Unspec)] {
                assert_eq!(rig.run(hook, rig.on.front, &answer).differs(action, &[], Some(&answer)), "");
            }
        }
    });
}

#[test]
fn port_that_a_client_uses_for_two_vips_is_another_one_for_the_second() {
    rig(|rig| {
        for family in Family::BOTH {
            let first = keeping(rig, family);
            first.handshake(rig);
            // The same client, port and backend behind another VIP.
            let vip = SocketAddr::new(bed::stranger(family), 80);
            rig.set_address(vip.ip(), address::VIP);
            let service = rig.service(family);
            rig.tables(family).set_service(vip, service);
            let mut second = Talk { vip, ..first };
            second.show(rig, &second.ask(SYN));
            second.snat = rig.flow(family, Table::HalfOpen, second.forward()).unwrap().to.src;
            assert_eq!(second.snat.ip(), first.client.ip());
            assert_ne!(second.snat, first.snat);
            second.handshake(rig);
            second.reply(rig, &second.answer(ACK).payload(b"from the second VIP"));
            first.reply(rig, &first.answer(ACK).payload(b"from the first VIP"));
        }
    });
}
