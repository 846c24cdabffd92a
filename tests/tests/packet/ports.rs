//! Mode `nat`: the address and port that a flow has towards its backend.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::{flow::Family, ports::PortPool, service::address, verdict::Reason};

use crate::{
    bed,
    frames::{ACK, FIN, SYN, Segment},
    rig::{Action, Ran, Rig, rig},
    setup::stats_of,
    tables::Table,
    talk::{CLIENT_SEQUENCE, SERVER_SEQUENCE, Talk, reset_of},
};

fn from_port(family: Family, port: u16) -> Talk {
    Talk::of(family, (bed::client(family).ip(), port).into(), 1)
}

/// A service whose pool has the ports from `first` to `last`.
fn pool(rig: &mut Rig, family: Family, first: u16, last: u16) {
    rig.nat(family, 1);
    rig.change_settings(|settings| settings.ports = PortPool::new([(first, last)], 7));
}

/// Sends a SYN whose port the balancer chooses; the talk knows it then.
#[track_caller]
fn open(rig: &mut Rig, mut talk: Talk, syn: &Segment) -> Talk {
    let ran = talk.show(rig, syn);
    let entry = rig.flow(talk.family, Table::HalfOpen, talk.forward());
    talk.snat = entry.unwrap_or_else(|| panic!("{talk:?} has no flow: {ran:?}")).to.src;
    ran.is(Action::Redirect, Reason::ToBackend, &talk.asked(syn).frame());
    talk
}

#[track_caller]
fn is_refused(ran: &Ran, syn: &Segment) {
    ran.is(Action::Tx, Reason::PortsExhausted, &reset_of(syn).frame());
}

/// Opens, closes from both ends, the backend first, so that it keeps TIME_WAIT; the client's last
/// sequence number and timestamp are `sequence` and `timestamp`.
#[track_caller]
fn open_and_close(rig: &mut Rig, talk: Talk, sequence: u32, timestamp: u32) -> Talk {
    let talk = open(rig, talk, &talk.ask(SYN));
    talk.reply(rig, &talk.answer(SYN | ACK));
    talk.send(rig, &talk.ask(ACK));
    talk.reply(rig, &talk.answer(FIN | ACK));
    let fin = talk.ask(FIN | ACK).sequence(sequence.wrapping_sub(1), SERVER_SEQUENCE + 2);
    talk.send(rig, &if timestamp == 0 { fin } else { fin.timestamp(timestamp) });
    talk
}

#[test]
fn clients_port_is_kept_if_the_pool_has_it() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            for port in [1024, 4711, 32_767, 61_000, 65_535] {
                from_port(family, port).handshake(rig);
            }
        }
    });
}

#[test]
fn port_outside_the_pool_becomes_one_of_the_pool() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let mut used = BTreeSet::new();
            for port in [1, 80, 1023, 32_768, 40_000, 60_999] {
                let talk = from_port(family, port);
                let talk = open(rig, talk, &talk.ask(SYN));
                let chosen = talk.snat.port();
                assert!((1024..=32_767).contains(&chosen) || chosen >= 61_000, "{chosen}");
                assert!(used.insert(chosen), "{chosen} twice");
                talk.reply(rig, &talk.answer(SYN | ACK));
                talk.send(rig, &talk.ask(ACK));
                talk.reply(rig, &talk.answer(ACK).payload(b"hello"));
            }
            assert_eq!(rig.counts(family), (0, 12));
        }
    });
}

#[test]
fn clients_with_the_same_port_get_different_ones_towards_a_backend() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 2);
            rig.set_slots(family, |_| 1);
            let first = Talk::new(family, 1);
            first.handshake(rig);
            let second = Talk::of(family, bed::other_client(family), 1);
            let second = open(rig, second, &second.ask(SYN));
            assert_ne!(second.snat, first.snat);
            second.reply(rig, &second.answer(SYN | ACK));
            second.send(rig, &second.ask(ACK));
            first.reply(rig, &first.answer(ACK).payload(b"for the first"));
            second.reply(rig, &second.answer(ACK).payload(b"for the second"));

            // Towards another backend the port is free.
            rig.set_slots(family, |_| 2);
            let mut third = Talk::of(family, bed::other_client(family), 2);
            third.client.set_ip(bed::stranger(family));
            third.handshake(rig);
        }
    });
}

#[test]
fn syn_without_a_free_port_is_reset_and_counted() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2003);
            let ports: BTreeSet<u16> = (0..4)
                .map(|number| {
                    let talk = from_port(family, 40_000 + number);
                    let talk = open(rig, talk, &talk.ask(SYN));
                    talk.reply(rig, &talk.answer(SYN | ACK));
                    talk.send(rig, &talk.ask(ACK));
                    talk.snat.port()
                })
                .collect();
            assert_eq!(ports.into_iter().collect::<Vec<_>>(), [2000, 2001, 2002, 2003]);
            let talk = from_port(family, 40_004);
            for _ in 0..3 {
                is_refused(&talk.show(rig, &talk.ask(SYN)), &talk.ask(SYN));
            }
            talk.is_absent(rig);
            assert_eq!(rig.counts(family), (0, 8));
            assert_eq!(rig.service_stats(stats_of(family)).refused, 3);
        }
    });
}

#[test]
fn closed_tuple_comes_up_again_after_all_others() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2015);
            let mut order = Vec::new();
            for number in 0..16 {
                order.push(open_and_close(rig, from_port(family, 40_000 + number), 5000, 0).snat.port());
            }
            let distinct: BTreeSet<u16> = order.iter().copied().collect();
            assert_eq!(distinct.len(), 16, "{order:?}");

            // All are closed now: the one that has been so the longest, of those tried, is taken.
            let talk = from_port(family, 41_000);
            let syn = talk.ask(SYN).sequence(5001, 0);
            let ran = talk.show(rig, &syn);
            let taken = rig.flow(family, Table::HalfOpen, talk.forward()).unwrap().to.src.port();
            assert_eq!(taken, order[0], "of {order:?}");
            assert_eq!(ran.counted.keys().copied().collect::<Vec<_>>(), ["closed_reused", "to_backend"]);
            assert_eq!(rig.counts(family), (32, 0));
        }
    });
}

#[test]
fn closed_tuple_is_taken_only_by_a_syn_that_time_wait_lets_in() {
    rig(|rig| {
        for family in Family::BOTH {
            // (last sequence, last timestamp, the SYN's sequence, its timestamp, whether it is let
            // in)
            let cases: [(u32, u32, u32, u32, bool); 14] = [
                (5000, 0, 5001, 0, true),
                (5000, 0, 5000, 0, false),
                (5000, 0, 4999, 0, false),
                (5000, 0, 4999, 7, false),
                (0xffff_fff0, 0, 0x10, 0, true),
                (0x10, 0, 0xffff_fff0, 0, false),
                (5000, 100, 5001, 101, true),
                (5000, 100, 5001, 100, true),
                (5000, 100, 5001, 99, false),
                (5000, 100, 4999, 101, true),
                (5000, 100, 5001, 0, true),
                (5000, 100, 4999, 0, false),
                (5000, 100, 4999, 100, false),
                (5000, 0xffff_ffff, 5001, 5, true),
            ];
            for case in cases {
                let (last, last_stamp, sequence, stamp, is_let_in) = case;
                rig.clear(family);
                pool(rig, family, 2000, 2000);
                let old = open_and_close(rig, from_port(family, 40_000), last, last_stamp);
                let mut talk = from_port(family, 40_001);
                let syn = talk.ask(SYN).sequence(sequence, 0);
                let syn = if stamp == 0 { syn } else { syn.timestamp(stamp) };
                let ran = talk.show(rig, &syn);
                if is_let_in {
                    talk.snat = old.snat;
                    let out = talk.asked(&syn).frame();
                    let problems = ran.differs(Action::Redirect, &["closed_reused", "to_backend"], Some(&out));
                    assert_eq!(problems, "", "{case:?}");
                    // What the old one had is gone, and an answer is the new one's.
                    assert_eq!(rig.flow(family, Table::HalfOpen, old.forward()), None, "{case:?}");
                    talk.reply(rig, &talk.answer(SYN | ACK));
                } else {
                    let problems = ran.differs(Action::Tx, &["ports_exhausted"], Some(&reset_of(&syn).frame()));
                    assert_eq!(problems, "", "{case:?}");
                    assert_eq!(rig.counts(family), (2, 0), "{case:?}");
                }
            }
        }
    });
}

#[test]
fn tuple_that_the_client_closed_first_is_free_after_a_second() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2000);
            let old = open(rig, from_port(family, 40_000), &from_port(family, 40_000).ask(SYN));
            old.reply(rig, &old.answer(SYN | ACK));
            old.send(rig, &old.ask(ACK));
            old.send(rig, &old.ask(FIN | ACK).sequence(5000, SERVER_SEQUENCE + 1));
            old.reply(rig, &old.answer(FIN | ACK));
            let mut new = from_port(family, 40_001);
            // Older in sequence: a TIME_WAIT would not let it in, and its backend's last
            // acknowledgement may still be under way.
            let syn = new.ask(SYN).sequence(4000, 0);
            is_refused(&new.show(rig, &syn), &syn);
            rig.age(family, Table::HalfOpen, 2);
            let ran = new.show(rig, &syn);
            new.snat = old.snat;
            assert_eq!(ran.differs(Action::Redirect, &["to_backend"], Some(&new.asked(&syn).frame())), "");
            assert_eq!(rig.flow(family, Table::HalfOpen, old.forward()), None);
        }
    });
}

#[test]
fn half_open_flow_of_a_second_may_lose_its_port_to_a_newer_one() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2000);
            let old = from_port(family, 40_000);
            let old = open(rig, old, &old.ask(SYN));
            let mut new = from_port(family, 40_001);
            is_refused(&new.show(rig, &new.ask(SYN)), &new.ask(SYN));

            rig.age(family, Table::HalfOpen, 2);
            new.snat = old.snat;
            let ran = new.show(rig, &new.ask(SYN));
            ran.is_counted(Action::Redirect, &["half_open_stolen", "to_backend"], &new.asked(&new.ask(SYN)).frame());
            assert_eq!(rig.flow(family, Table::HalfOpen, old.forward()), None);
            assert_eq!(rig.counts(family), (2, 0));
            new.reply(rig, &new.answer(SYN | ACK));
            new.send(rig, &new.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn several_snat_addresses_multiply_the_pool() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2002);
            rig.change_backend(1, |backend| backend.snat_count = 2);
            rig.set_address(bed::other_snat(family), address::SNAT);
            let mut tuples: BTreeSet<SocketAddr> = BTreeSet::new();
            for number in 0..6 {
                let talk = from_port(family, 40_000 + number);
                let talk = open(rig, talk, &talk.ask(SYN));
                talk.reply(rig, &talk.answer(SYN | ACK));
                talk.send(rig, &talk.ask(ACK));
                tuples.insert(talk.snat);
            }
            let wanted: BTreeSet<SocketAddr> = [bed::snat(family), bed::other_snat(family)]
                .into_iter()
                .flat_map(|ip| (2000..=2002).map(move |port| SocketAddr::new(ip, port)))
                .collect();
            assert_eq!(tuples, wanted);
            let talk = from_port(family, 40_006);
            is_refused(&talk.show(rig, &talk.ask(SYN)), &talk.ask(SYN));
        }
    });
}

#[test]
fn client_that_closes_and_comes_back_from_its_port_gets_its_tuple_whatever_the_pool_holds() {
    rig(|rig| {
        for family in Family::BOTH {
            pool(rig, family, 2000, 2000);
            let talk = open_and_close(rig, from_port(family, 40_000), CLIENT_SEQUENCE + 50, 0);
            talk.send(rig, &talk.ask(SYN).sequence(CLIENT_SEQUENCE + 1000, 0));
            assert_eq!(rig.counts(family), (2, 0));
        }
    });
}
