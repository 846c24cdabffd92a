//! Mode `nat`: flows that end, that idle, whose backend or slot changes.

use lb_common::{
    backend::{ADMIN_DRAINING, Backend, HEALTH_DOWN},
    flow::Family,
    nat::{NAT_FIN_BACKEND, NAT_FIN_CLIENT, NAT_RESET, is_closing},
    settings::Settings,
    verdict::Reason,
};

use crate::{
    bed,
    frames::{ACK, FIN, PSH, RST, SYN},
    rig::{Action, Hook, Rig, rig},
    tables::Table,
    talk::{CLIENT_SEQUENCE, SERVER_SEQUENCE, Talk, reset_of},
};

/// A rig with an established flow to backend 1 of two, whose slots are all the first one's.
fn talking(rig: &mut Rig, family: Family) -> Talk {
    rig.nat(family, 2);
    rig.set_slots(family, |_| 1);
    let talk = Talk::new(family, 1);
    talk.handshake(rig);
    talk
}

#[track_caller]
fn flags(rig: &mut Rig, talk: &Talk) -> u32 {
    let [forward, back] = talk.entries(rig, Table::Established);
    assert_eq!(forward.flags ^ back.flags, 1, "both entries have the same flags, but for the direction");
    back.flags
}

/// Both ends say FIN; the client's is `CLIENT_SEQUENCE + 1`.
fn close(rig: &Rig, talk: &Talk) {
    talk.send(rig, &talk.ask(FIN | ACK));
    talk.reply(rig, &talk.answer(FIN | ACK).sequence(SERVER_SEQUENCE + 1, CLIENT_SEQUENCE + 2));
    talk.send(rig, &talk.ask(ACK).sequence(CLIENT_SEQUENCE + 2, SERVER_SEQUENCE + 2));
}

#[test]
fn flow_closes_when_both_ends_have_said_fin() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            talk.send(rig, &talk.ask(FIN | ACK));
            let seen = flags(rig, &talk);
            assert_eq!((seen & NAT_FIN_CLIENT, is_closing(seen)), (NAT_FIN_CLIENT, false));
            // Half closed: the backend goes on.
            talk.reply(rig, &talk.answer(PSH | ACK).payload(b"more"));
            assert!(!is_closing(flags(rig, &talk)));
            talk.reply(rig, &talk.answer(FIN | ACK));
            // It leaves its room to flows that live.
            assert_eq!(rig.counts(family), (2, 0));
            let [forward, back] = talk.entries(rig, Table::HalfOpen);
            assert_eq!((back.flags & NAT_FIN_BACKEND, is_closing(back.flags)), (NAT_FIN_BACKEND, true));
            assert_eq!(forward.flags ^ back.flags, 1, "both entries have the same flags, but for the direction");
            // The last acknowledgement finds its way, and so does a FIN that is sent again.
            talk.send(rig, &talk.ask(ACK));
            talk.reply(rig, &talk.answer(FIN | ACK));
            assert_eq!(talk.entries(rig, Table::HalfOpen).map(|entry| entry.flags), [forward.flags, back.flags]);
            rig.clear(family);
        }
    });
}

#[test]
fn reset_closes_a_flow_and_a_later_packet_takes_that_back() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            talk.send(rig, &talk.ask(RST));
            assert_eq!(flags(rig, &talk) & NAT_RESET, NAT_RESET);
            talk.reply(rig, &talk.answer(ACK));
            assert!(!is_closing(flags(rig, &talk)), "a blind reset harms nobody");
            talk.reply(rig, &talk.answer(RST | ACK));
            assert!(is_closing(flags(rig, &talk)));
            talk.send(rig, &talk.ask(ACK));
            assert!(!is_closing(flags(rig, &talk)));
        }
    });
}

#[test]
fn syn_on_a_closing_flow_uses_its_tuple_again() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            close(rig, &talk);
            talk.send(rig, &talk.ask(SYN).sequence(9000, 0));
            assert_eq!(rig.counts(family), (2, 0));
            let server = SERVER_SEQUENCE + 70_000;
            talk.reply(rig, &talk.answer(SYN | ACK).sequence(server, 9001));
            talk.send(rig, &talk.ask(ACK).sequence(9001, server + 1));
            assert_eq!(rig.counts(family), (0, 2));
            assert!(!is_closing(flags(rig, &talk)));
        }
    });
}

#[test]
fn syn_on_a_closing_flow_goes_to_the_slots_new_owner() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            close(rig, &talk);
            rig.set_slots(family, |_| 2);
            let second = Talk::new(family, 2);
            second.send(rig, &second.ask(SYN).sequence(9000, 0));
        }
    });
}

#[test]
fn syn_on_a_living_flow_goes_to_its_backend_and_changes_nothing() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            rig.set_slots(family, |_| 2);
            let before = talk.entries(rig, Table::Established);
            talk.send(rig, &talk.ask(SYN).sequence(77, 0));
            assert_eq!(talk.entries(rig, Table::Established), before);
            assert_eq!(rig.counts(family), (0, 2));
            talk.send(rig, &talk.ask(ACK).payload(b"still here"));
        }
    });
}

#[test]
fn established_flow_stays_with_its_backend_when_the_slot_has_another_owner() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            for owner in [2, 0] {
                rig.set_slots(family, |_| owner);
                talk.send(rig, &talk.ask(PSH | ACK).payload(b"question"));
                talk.reply(rig, &talk.answer(PSH | ACK).payload(b"answer"));
            }
        }
    });
}

#[test]
fn draining_and_down_backends_keep_their_flows() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            rig.set_slots(family, |_| 2);
            let changes: [fn(&mut Backend); 2] =
                [|backend| backend.admin = ADMIN_DRAINING, |backend| backend.health = HEALTH_DOWN];
            for change in changes {
                rig.change_backend(1, change);
                talk.send(rig, &talk.ask(PSH | ACK).payload(b"question"));
                talk.reply(rig, &talk.answer(PSH | ACK).payload(b"answer"));
            }
            let new = Talk::of(family, bed::other_client(family), 2);
            new.handshake(rig);
        }
    });
}

/// What both ends of an established flow get when their backend serves no more.
#[track_caller]
fn is_reset_at_both_ends(rig: &mut Rig, talk: &Talk) {
    for segment in [talk.ask(PSH | ACK).payload(b"question"), talk.ask(ACK), talk.ask(FIN | ACK)] {
        let ran = talk.show(rig, &segment);
        ran.is(Action::Tx, Reason::BackendGone, &reset_of(&segment).frame());
    }
    for segment in [talk.answer(PSH | ACK).payload(b"answer"), talk.answer(ACK), talk.answer(FIN | ACK)] {
        let ran = rig.run(Hook::Xdp, rig.on.back, &segment.frame());
        ran.is(Action::Tx, Reason::BackendGone, &reset_of(&segment).frame());
    }
    talk.show(rig, &talk.ask(RST)).is_dropped(Reason::StrayReset);
    rig.run(Hook::Xdp, rig.on.back, &talk.answer(RST).frame()).is_dropped(Reason::StrayReset);
}

#[test]
fn flows_of_a_disabled_backend_are_reset_at_both_ends() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            rig.change_backend(1, |backend| backend.flags = 0);
            is_reset_at_both_ends(rig, &talk);

            // A new connection from the same port is a new flow.
            rig.set_slots(family, |_| 2);
            let second = Talk::new(family, 2);
            second.handshake(rig);
        }
    });
}

#[test]
fn entry_that_outlives_its_backend_is_never_another_ones() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = talking(rig, family);
            // The index is another backend's by now.
            let mut other = rig.backend_entry(family, bed::backend(family, 5));
            other.generation = 2;
            rig.set_backend(1, other);
            is_reset_at_both_ends(rig, &talk);
            let fifth = Talk::new(family, 5);
            fifth.handshake(rig);
        }
    });
}

#[test]
fn half_open_flow_of_a_disabled_backend_is_reset_and_its_syn_opens_anew() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 2);
            rig.set_slots(family, |_| 1);
            let (talk, second) = (Talk::new(family, 1), Talk::new(family, 2));
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(SYN | ACK));
            rig.change_backend(1, |backend| backend.flags = 0);
            rig.set_slots(family, |_| 2);
            let ack = talk.ask(ACK);
            talk.show(rig, &ack).is(Action::Tx, Reason::BackendGone, &reset_of(&ack).frame());
            second.handshake(rig);
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

/// A state, the table that holds it, the seconds that a flow in it may be idle, and how it gets
/// there.
type State = (&'static str, Table, u64, fn(&Rig, &Talk));

fn states() -> [State; 4] {
    [
        ("half-open", Table::HalfOpen, 30, |rig, talk| talk.send(rig, &talk.ask(SYN))),
        ("established", Table::Established, 7200, |rig, talk| talk.handshake(rig)),
        ("closing", Table::HalfOpen, 60, |rig, talk| {
            talk.handshake(rig);
            close(rig, talk);
        }),
        ("reset", Table::Established, 60, |rig, talk| {
            talk.handshake(rig);
            talk.send(rig, &talk.ask(RST));
        }),
    ]
}

#[test]
fn flow_lives_until_it_has_been_idle_for_the_time_of_its_state() {
    rig(|rig| {
        for family in Family::BOTH {
            for (state, table, limit, reach) in states() {
                println!("{state}, {family:?}");
                let talk = Talk::new(family, 1);
                rig.clear(family);
                rig.nat(family, 1);
                reach(rig, &talk);
                rig.age(family, table, limit - 5);
                talk.send(rig, &talk.ask(ACK));

                rig.clear(family);
                rig.nat(family, 1);
                reach(rig, &talk);
                rig.age(family, table, limit - 5);
                talk.reply(rig, &talk.answer(ACK));

                rig.clear(family);
                rig.nat(family, 1);
                reach(rig, &talk);
                rig.age(family, table, limit + 1);
                let late = talk.ask(ACK);
                talk.show(rig, &late).is(Action::Tx, Reason::UnknownFlow, &reset_of(&late).frame());
                let late = talk.answer(ACK).frame();
                rig.run(Hook::Xdp, rig.on.back, &late).is(Action::Pass, Reason::NotVip, &late);
                // Its port is free again.
                talk.handshake(rig);
            }
        }
    });
}

#[test]
fn established_flow_that_only_one_end_uses_lives() {
    rig(|rig| {
        for family in Family::BOTH {
            for used in ["client", "backend"] {
                let talk = talking(rig, family);
                rig.age(family, Table::Established, 7190);
                if used == "client" {
                    talk.send(rig, &talk.ask(ACK));
                } else {
                    talk.reply(rig, &talk.answer(ACK));
                }
                // Only one direction has been seen in the last two hours.
                rig.age(family, Table::Established, 7000);
                talk.send(rig, &talk.ask(ACK));
                talk.reply(rig, &talk.answer(ACK));
                rig.clear(family);
            }
        }
    });
}

#[test]
fn packets_of_unknown_flows_are_dropped_in_both_directions_while_another_build_takes_over() {
    rig(|rig| {
        for family in Family::BOTH {
            let known = talking(rig, family);
            rig.change_settings(|settings| settings.flags = Settings::FLAG_HANDOVER);
            let unknown = Talk::of(family, (bed::other_client(family).ip(), known.client.port() + 2).into(), 1);
            let asked = unknown.ask(ACK);
            unknown.show(rig, &asked).is(Action::Drop, Reason::Handover, &asked.frame());
            let answer = unknown.answer(SYN | ACK).frame();
            rig.run(Hook::Xdp, rig.on.back, &answer).is(Action::Drop, Reason::Handover, &answer);
            // What the node's own connections use is not in the pool.
            let own = known.answer(ACK).between(known.backend, (known.snat.ip(), 40_000).into()).frame();
            rig.run(Hook::Xdp, rig.on.back, &own).is(Action::Pass, Reason::NotVip, &own);
            // The known go on, and new ones open.
            known.send(rig, &known.ask(ACK));
            known.reply(rig, &known.answer(ACK));
            Talk::of(family, (known.client.ip(), known.client.port() + 1).into(), 1).handshake(rig);
            rig.change_settings(|settings| settings.flags = 0);
            unknown.show(rig, &asked).is(Action::Tx, Reason::UnknownFlow, &reset_of(&asked).frame());
            rig.clear(family);
        }
    });
}
