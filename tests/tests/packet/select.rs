//! Which backend a flow gets, and what is counted.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    flow::Family,
    hash::slot_of,
    service::{Service, Stats},
    verdict::Reason,
};

use crate::{
    bed,
    frames::{ACK, PSH, SYN},
    rig::{Action, Hook, Rig, rig},
    setup::{self, RING_LEN, stats_of},
    tables::{Table, pair},
    talk::Talk,
};

/// The backend that got the SYN of a client.
fn chosen(rig: &mut Rig, family: Family, client: SocketAddr) -> u32 {
    let talk = Talk::of(family, client, 1);
    talk.show(rig, &talk.ask(SYN));
    let entry = rig.flow(family, Table::HalfOpen, talk.forward()).unwrap();
    // Its address in the frame is the chosen one's.
    let talk = Talk { snat: entry.to.src, ..Talk::of(family, client, entry.backend as u8) };
    talk.send(rig, &talk.ask(SYN));
    entry.backend
}

#[test]
fn flow_goes_to_the_owner_of_the_slot_that_its_hash_names() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 3);
            let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
            for port in 5000..5150 {
                let client = SocketAddr::new(bed::client(family).ip(), port);
                let (hash, _) = rig.tables(family).hashes(&setup::settings().hash_key, pair(client, bed::web(family)));
                let owner = slot_of(hash, RING_LEN) % 3 + 1;
                assert_eq!(chosen(rig, family, client), owner, "{client}");
                *seen.entry(owner).or_default() += 1;
            }
            assert_eq!(seen.len(), 3, "all backends get some: {seen:?}");
        }
    });
}

#[test]
fn affinity_gives_all_ports_of_a_client_the_same_slot() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 3);
            rig.set_service(family, |service| service.flags = Service::FLAG_CLIENT_AFFINITY);
            for client in [bed::client(family), bed::other_client(family)] {
                let flow = pair(client, bed::web(family));
                let (_, hash) = rig.tables(family).hashes(&setup::settings().hash_key, flow);
                let owner = slot_of(hash, RING_LEN) % 3 + 1;
                for port in 5000..5030 {
                    assert_eq!(chosen(rig, family, SocketAddr::new(client.ip(), port)), owner, "{client}");
                }
            }
        }
    });
}

#[test]
fn counters_of_services_and_backends_are_exact() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 2);
            rig.set_slots(family, |_| 2);
            let talk = Talk::new(family, 2);
            let mut wanted = Stats::default();
            let ask = |wanted: &mut Stats, rig: &Rig, segment: crate::frames::Segment| {
                talk.send(rig, &segment);
                wanted.packets += 1;
                wanted.bytes += segment.frame().len() as u64 - 14;
            };
            let answer = |wanted: &mut Stats, rig: &Rig, segment: crate::frames::Segment| {
                talk.reply(rig, &segment);
                wanted.reply_packets += 1;
                wanted.reply_bytes += segment.frame().len() as u64 - 14;
            };
            ask(&mut wanted, rig, talk.ask(SYN));
            answer(&mut wanted, rig, talk.answer(SYN | ACK));
            assert_eq!(
                rig.service_stats(stats_of(family)).connections,
                0,
                "a connection is one whose handshake is complete"
            );
            ask(&mut wanted, rig, talk.ask(ACK));
            wanted.connections += 1;
            for size in [1, 100, 1400] {
                ask(&mut wanted, rig, talk.ask(PSH | ACK).payload(&vec![1; size]));
                answer(&mut wanted, rig, talk.answer(PSH | ACK).payload(&vec![2; size]));
                answer(&mut wanted, rig, talk.answer(ACK));
            }
            assert_eq!(rig.service_stats(stats_of(family)), wanted);
            assert_eq!(rig.backend_stats(2), wanted);
            assert_eq!(rig.backend_stats(1), Stats::default());

            let stray = Talk::of(family, bed::other_client(family), 2).ask(ACK);
            let ran = rig.run(Hook::Xdp, rig.on.front, &stray.frame());
            assert_eq!((ran.action, ran.counted.contains_key(Reason::UnknownFlow.name())), (Action::Tx, true));
            wanted.refused += 1;
            assert_eq!(rig.service_stats(stats_of(family)), wanted);
            rig.set_backend(2, lb_common::backend::Backend::FREE);
            rig.clear_stats();
        }
    });
}
