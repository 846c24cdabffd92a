//! Mode `dsr-l2`: nothing but MAC addresses and TTL changes, and nothing is remembered.

use std::net::SocketAddr;

use lb_common::{
    backend::WAY_DSR_L2,
    flow::Family,
    hash::slot_of,
    service::{MODE_DSR_L2, Service, Stats},
    settings::Settings,
    slot::Slot,
    verdict::Reason,
};

use crate::{
    bed::{self, BACK_MAC, backend_mac},
    frames::{ACK, FIN, RST, SYN, Segment},
    rig::{Action, Hook, Rig, rig},
    setup::{self, RING_LEN, stats_of},
    tables::pair,
    talk::{Talk, reset_of},
};

fn dsr(rig: &mut Rig, family: Family, backends: u8) {
    rig.nat(family, backends);
    rig.forget_syns();
    rig.set_service(family, |service| service.mode = MODE_DSR_L2);
    for number in 1..=backends {
        rig.change_backend(number.into(), |backend| {
            backend.way = WAY_DSR_L2;
            backend.port_be = 80_u16.to_be();
        });
    }
}

fn to_backend(segment: &Segment, number: u8) -> Vec<u8> {
    segment.clone().macs(BACK_MAC, backend_mac(number)).ttl(segment.envelope.ttl - 1).frame()
}

#[test]
fn every_packet_goes_to_its_slots_owner_with_only_macs_and_ttl_changed() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 3);
            let mut wanted = Stats::default();
            for port in 5000..5040 {
                let client = SocketAddr::new(bed::client(family).ip(), port);
                let (hash, _) = rig.tables(family).hashes(&setup::settings().hash_key, pair(client, bed::web(family)));
                let owner = (slot_of(hash, RING_LEN) % 3 + 1) as u8;
                let talk = Talk::of(family, client, owner);
                for flags in [SYN, ACK, FIN | ACK, RST, SYN | ACK, 0] {
                    let segment = talk.ask(flags).timestamp(4).payload(b"odd");
                    talk.show(rig, &segment).is(Action::Redirect, Reason::ToBackend, &to_backend(&segment, owner));
                    wanted.packets += 1;
                    wanted.bytes += segment.frame().len() as u64 - 14;
                }
            }
            assert_eq!(rig.counts(family), (0, 0), "nothing is remembered");
            let seen = rig.service_stats(stats_of(family));
            assert_eq!((seen.packets, seen.bytes), (wanted.packets, wanted.bytes));
            assert_eq!((seen.reply_packets, seen.refused), (0, 0));
            assert_eq!((1..=3).map(|index| rig.backend_stats(index).packets).sum::<u64>(), wanted.packets);
            rig.clear_stats();
        }
    });
}

#[test]
fn service_is_remembered_by_vip_and_port_until_it_is_said_that_services_have_changed() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let (before, after) = (stats_of(family), stats_of(family) + 9);
            let talk = Talk::new(family, 1);
            let counted = |rig: &mut Rig| (rig.service_stats(before).packets, rig.service_stats(after).packets);
            talk.show(rig, &talk.ask(ACK));
            let moved = Service { stats: after, ..rig.service(family) };
            let moved = Service { mode: MODE_DSR_L2, ..moved };
            rig.tables_unsaid(family).set_service(bed::web(family), moved);
            talk.show(rig, &talk.ask(ACK));
            assert_eq!(counted(rig), (2, 0), "what is remembered saves the look-up");
            // Another port of the VIP is another service, or none.
            let elsewhere = SocketAddr::new(bed::web(family).ip(), bed::web(family).port() + 1);
            let segment = talk.ask(ACK).between(talk.client, elsewhere);
            assert!(talk.show(rig, &segment).counted.contains_key(Reason::PortNotServed.name()));
            rig.tables(family);
            talk.show(rig, &talk.ask(ACK));
            assert_eq!(counted(rig), (2, 1));
            rig.tables(family).clear();
            assert!(!talk.show(rig, &talk.ask(ACK)).counted.contains_key(Reason::ToBackend.name()));
        }
    });
}

#[test]
fn connection_that_leaves_by_tc_is_counted_once_and_a_repeat_of_its_syn_is_none() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let mut entry = rig.backend_entry(family, bed::silent_backend(family));
            entry.way = WAY_DSR_L2;
            rig.set_backend(1, entry);
            let syn = Talk::new(family, 1).ask(SYN).frame();
            for (event, connections) in [(None, 1), (Some("syn_again"), 1)] {
                let expected: Vec<&str> = [Some("no_neighbour"), event].into_iter().flatten().collect();
                let counted = |hook| rig.run(hook, rig.on.front, &syn).counted.into_keys().collect::<Vec<_>>();
                assert_eq!(counted(Hook::Xdp), expected, "{family:?}");
                assert_eq!(counted(Hook::Ingress), [Reason::ToBackendByTc.name()], "{family:?}");
                assert_eq!(rig.service_stats(stats_of(family)).connections, connections, "{family:?}");
            }
            rig.clear_stats();
        }
    });
}

#[test]
fn syn_sent_again_goes_where_its_acknowledgement_will_once_its_slot_has_settled() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 2);
            let talk = Talk::new(family, 1);
            let owner = |rig: &Rig, flags| {
                let frame = talk.show(rig, &talk.ask(flags)).frame;
                (1..=2).find(|number| frame.starts_with(&backend_mac(*number)))
            };
            rig.set_slots(family, |_| 1);
            assert_eq!([owner(rig, SYN), owner(rig, SYN)], [Some(1), Some(1)]);
            rig.set_slots(family, |_| 2);
            assert_eq!([owner(rig, SYN), owner(rig, ACK)], [Some(2), Some(2)]);
        }
    });
}

#[test]
fn connections_are_counted_by_their_syns() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let talk = Talk::new(family, 1);
            for flags in [SYN, ACK, ACK, FIN | ACK] {
                talk.show(rig, &talk.ask(flags));
            }
            assert_eq!(rig.service_stats(stats_of(family)).connections, 1);
        }
    });
}

#[test]
fn options_extensions_and_padding_stay_as_they_are() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let talk = Talk::new(family, 1);
            let rich = talk.ask(ACK).timestamp(5).with(|ip| match family {
                Family::V4 => ip.options = vec![1; 24],
                Family::V6 => ip.extensions = Some((0, vec![6, 0, 1, 4, 0, 0, 0, 0])),
            });
            let pad = |mut frame: Vec<u8>| {
                frame.extend([0xaa; 6]);
                frame
            };
            let ran = rig.run(Hook::Xdp, rig.on.front, &pad(rich.frame()));
            ran.is(Action::Redirect, Reason::ToBackend, &pad(to_backend(&rich, 1)));
        }
    });
}

#[test]
fn backend_behind_a_router_is_refused() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let mut entry = rig.backend_entry(family, bed::routed_backend(family));
            entry.way = WAY_DSR_L2;
            rig.set_backend(1, entry);
            let talk = Talk::new(family, 1);
            for hook in [Hook::Xdp, Hook::Ingress] {
                rig.run(hook, rig.on.front, &talk.ask(ACK).frame()).is_dropped(Reason::NotOnLink);
            }
        }
    });
}

#[test]
fn neighbour_that_is_not_resolved_is_reached_by_tc() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let mut entry = rig.backend_entry(family, bed::silent_backend(family));
            entry.way = WAY_DSR_L2;
            rig.set_backend(1, entry);
            let segment = Talk::new(family, 1).ask(ACK).timestamp(6);
            let frame = segment.frame();
            rig.run(Hook::Xdp, rig.on.front, &frame).is(Action::Pass, Reason::NoNeighbour, &frame);
            let out = segment.ttl(63).frame();
            rig.run(Hook::Ingress, rig.on.front, &frame).is(Action::Redirect, Reason::ToBackendByTc, &out);
        }
    });
}

#[test]
fn without_an_eligible_backend_everything_is_reset() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 1);
            let talk = Talk::new(family, 1);
            // No owner, and an owner that serves no more.
            for owner in [0, 1] {
                rig.set_slots(family, |_| owner);
                rig.change_backend(1, |backend| backend.flags = 0);
                for segment in [talk.ask(SYN), talk.ask(ACK).payload(b"data")] {
                    talk.show(rig, &segment).is(Action::Tx, Reason::NoBackend, &reset_of(&segment).frame());
                }
                talk.show(rig, &talk.ask(RST)).is_dropped(Reason::StrayReset);
            }
        }
    });
}

#[test]
fn flow_that_may_have_begun_at_another_build_is_not_guessed_while_that_one_takes_over() {
    rig(|rig| {
        for family in Family::BOTH {
            dsr(rig, family, 2);
            let change_slots = |rig: &mut Rig, slot: Slot| {
                (0..RING_LEN).for_each(|at| rig.rings.set(setup::ring_offset(family) + at, slot.0, 0).unwrap());
            };
            change_slots(rig, Slot::settled(1).changed(2));
            let talk = |port| Talk::of(family, SocketAddr::new(bed::client(family).ip(), port), 1);
            let (seen, begins, unknown) = (talk(6001), talk(6002), talk(6003));
            let goes = |rig: &Rig, talk: &Talk, flags, number| {
                let segment = talk.ask(flags);
                talk.show(rig, &segment).is(Action::Redirect, Reason::ToBackend, &to_backend(&segment, number));
            };
            goes(rig, &seen, ACK, 1);
            rig.change_settings(|settings| settings.flags = Settings::FLAG_HANDOVER);
            goes(rig, &seen, ACK, 1);
            goes(rig, &begins, SYN, 2);
            goes(rig, &begins, ACK, 2);
            unknown.show(rig, &unknown.ask(ACK)).is_dropped(Reason::Handover);
            change_slots(rig, Slot::settled(1));
            goes(rig, &unknown, ACK, 1);
            change_slots(rig, Slot::settled(1).changed(2));
            rig.change_settings(|settings| settings.flags = 0);
            goes(rig, &unknown, ACK, 1);
            rig.clear(family);
        }
    });
}
