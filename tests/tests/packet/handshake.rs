//! Mode `nat`: from the SYN to the established flow and back.

use lb_common::{
    flow::Family,
    nat::{NAT_ANSWERED, NAT_ESTABLISHED, NAT_FORWARD},
    verdict::Reason,
};

use crate::{
    bed,
    frames::{ACK, PSH, RST, SYN},
    rig::{Action, Hook, rig, small_rig},
    setup::stats_of,
    tables::Table,
    talk::{CLIENT_SEQUENCE, SERVER_SEQUENCE, Talk, reset_of},
};

#[test]
fn handshake_rewrites_addresses_ports_ttl_macs_and_checksums_and_moves_both_entries_to_established() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN).timestamp(77));
            let [forward, back] = talk.entries(rig, Table::HalfOpen);
            assert_eq!((forward.to, back.to), (talk.back_way(), talk.client_way()));
            assert_eq!((forward.flags, back.flags), (NAT_FORWARD, 0));
            assert_eq!((forward.backend, forward.generation, forward.stats), (1, 1, stats_of(family)));
            assert_eq!(forward.sequence, CLIENT_SEQUENCE);

            talk.reply(rig, &talk.answer(SYN | ACK).timestamp(99));
            let [forward, back] = talk.entries(rig, Table::HalfOpen);
            assert_eq!((forward.flags, back.flags), (NAT_FORWARD | NAT_ANSWERED, NAT_ANSWERED));
            assert_eq!(back.sequence, SERVER_SEQUENCE + 1);
            assert_eq!(rig.counts(family), (2, 0));

            talk.send(rig, &talk.ask(ACK).timestamp(78));
            let [forward, back] = talk.entries(rig, Table::Established);
            assert_eq!(forward.flags, NAT_FORWARD | NAT_ANSWERED | NAT_ESTABLISHED);
            assert_eq!(back.flags, NAT_ANSWERED | NAT_ESTABLISHED);
            assert_eq!(rig.counts(family), (0, 2));

            for size in [1, 2, 3, 536, 1400] {
                let data: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
                talk.send(rig, &talk.ask(PSH | ACK).payload(&data));
                talk.reply(rig, &talk.answer(PSH | ACK).payload(&data));
            }
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn headers_with_options_and_extensions_are_rewritten_in_their_place() {
    rig(|rig| {
        rig.nat(Family::V4, 1);
        for words in 1..=10 {
            let talk = Talk::of(Family::V4, (bed::client(Family::V4).ip(), 5000 + words).into(), 1);
            // NOPs (RFC 791).
            let syn = talk.ask(SYN).with(|ip| ip.options = vec![1; 4 * words as usize]).timestamp(1);
            talk.send(rig, &syn);
        }
        let talk = Talk::new(Family::V4, 1);
        talk.send(rig, &talk.ask(SYN).options(&[1; 40]));
    });
}

#[test]
fn padding_of_short_frames_is_not_data_and_stays() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let pad = |mut frame: Vec<u8>| {
                frame.extend([0xee; 9]);
                frame
            };
            let syn = talk.ask(SYN);
            let ran = rig.run(Hook::Xdp, rig.on.front, &pad(syn.frame()));
            ran.is(Action::Redirect, Reason::ToBackend, &pad(talk.asked(&syn).frame()));

            let lost = talk.ask(SYN).sequence(7, 0).between(talk.client, (talk.vip.ip(), 81).into());
            let ran = rig.run(Hook::Xdp, rig.on.front, &pad(lost.frame()));
            ran.is(Action::Tx, Reason::PortNotServed, &reset_of(&lost).frame());
        }
    });
}

#[test]
fn guessed_ack_never_establishes() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            // Before the backend has answered nothing can be right.
            talk.send(rig, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (2, 0));
            talk.reply(rig, &talk.answer(SYN | ACK));
            for guess in
                [0, SERVER_SEQUENCE, SERVER_SEQUENCE - 1, SERVER_SEQUENCE + 1 + (1 << 16), 0x8000_0000, u32::MAX]
            {
                talk.send(rig, &talk.ask(ACK).sequence(CLIENT_SEQUENCE + 1, guess));
                assert_eq!(rig.counts(family), (2, 0), "acknowledgement {guess} of {SERVER_SEQUENCE}");
            }
            talk.send(rig, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn backend_that_speaks_first_may_be_acknowledged_with_its_data() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(SYN | ACK));
            talk.send(rig, &talk.ask(ACK).sequence(CLIENT_SEQUENCE + 1, SERVER_SEQUENCE + 1 + 1448));
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn syn_sent_again_keeps_its_tuple() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 3);
            rig.set_slots(family, |_| 2);
            let talk = Talk::new(family, 2);
            for _ in 0..3 {
                talk.send(rig, &talk.ask(SYN));
                assert_eq!(rig.counts(family), (2, 0));
            }
            // The backend has answered: the flow stays with it whoever owns the slot.
            talk.reply(rig, &talk.answer(SYN | ACK));
            rig.set_slots(family, |_| 3);
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(SYN | ACK));
            talk.send(rig, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn syn_sent_again_follows_its_slot_while_nobody_has_answered() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 2);
            rig.set_slots(family, |_| 1);
            let (first, second) = (Talk::new(family, 1), Talk::new(family, 2));
            first.send(rig, &first.ask(SYN));
            rig.set_slots(family, |_| 2);
            second.send(rig, &second.ask(SYN));
            assert_eq!(rig.counts(family), (2, 0), "what the first backend was to get is gone");
            second.reply(rig, &second.answer(SYN | ACK));
            second.send(rig, &second.ask(ACK));
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn refused_connection_tells_the_client_and_frees_its_port_at_once() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(RST | ACK));
            talk.is_absent(rig);
            let again = talk.ask(SYN).sequence(1, 0);
            talk.send(rig, &again);
        }
    });
}

#[test]
fn flow_that_finds_no_room_among_the_established_works_on_half_open() {
    small_rig(2, |rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            for port in [5001, 5002] {
                Talk::of(family, (bed::client(family).ip(), port).into(), 1).handshake(rig);
            }
            assert_eq!(rig.counts(family), (0, 4));
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            talk.reply(rig, &talk.answer(SYN | ACK));
            for _ in 0..2 {
                let ran = talk.show(rig, &talk.ask(ACK).payload(b"hello"));
                let out = talk.asked(&talk.ask(ACK).payload(b"hello")).frame();
                ran.is_counted(Action::Redirect, &["established_full", "to_backend"], &out);
                talk.reply(rig, &talk.answer(ACK).payload(b"hello yourself"));
            }
            assert_eq!(rig.counts(family), (2, 4));
            assert_eq!(rig.service_stats(stats_of(family)).connections, 2);

            // It moves as soon as there is room.
            rig.tables(family)
                .remove_flow(Table::Established, Talk::of(family, (talk.client.ip(), 5001).into(), 1).forward());
            rig.tables(family)
                .remove_flow(Table::Established, Talk::of(family, (talk.client.ip(), 5001).into(), 1).back());
            talk.send(rig, &talk.ask(ACK));
            assert_eq!(rig.counts(family), (0, 4));
            assert_eq!(rig.service_stats(stats_of(family)).connections, 3);
        }
    });
}

#[test]
fn syn_sent_again_opens_anew_when_the_entry_of_the_way_back_was_evicted() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.send(rig, &talk.ask(SYN));
            rig.tables(family).remove_flow(Table::HalfOpen, talk.back());
            talk.handshake(rig);
            assert_eq!(rig.counts(family), (0, 2));
        }
    });
}

#[test]
fn syn_sent_again_leaves_its_tuple_to_who_has_claimed_it_meanwhile() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let (first, second) = (Talk::new(family, 1), Talk::of(family, bed::other_client(family), 1));
            first.send(rig, &first.ask(SYN));
            rig.tables(family).remove_flow(Table::HalfOpen, first.back());
            // The same port of another client, towards the same backend.
            second.send(rig, &second.ask(SYN));
            first.show(rig, &first.ask(SYN));
            let [forward, _] = second.entries(rig, Table::HalfOpen);
            assert_eq!(forward.to.src, second.snat);
            let moved = rig.flow(family, Table::HalfOpen, first.forward()).unwrap().to.src;
            assert_ne!(moved, second.snat);
            second.reply(rig, &second.answer(SYN | ACK));
            let first = Talk { snat: moved, ..first };
            first.reply(rig, &first.answer(SYN | ACK));
            first.send(rig, &first.ask(ACK));
            second.send(rig, &second.ask(ACK));
            assert_eq!(rig.counts(family), (0, 4));
        }
    });
}

#[test]
fn wrong_checksum_stays_wrong() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let segment = talk.ask(ACK).payload(b"data");
            let at = segment.frame().len() - 1;
            let corrupt = |mut frame: Vec<u8>| {
                frame[at] ^= 0x40;
                frame
            };
            let ran = rig.run(Hook::Xdp, rig.on.front, &corrupt(segment.frame()));
            ran.is(Action::Redirect, Reason::ToBackend, &corrupt(talk.asked(&segment).frame()));
        }
    });
}
