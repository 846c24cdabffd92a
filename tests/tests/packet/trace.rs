//! What is told of decisions: while somebody asks, what is asked for, no more than the rate, and no
//! word of another packet.

use std::net::SocketAddr;

use aya::maps::{Array, MapData, RingBuf};
use lb_common::{
    flow::{AnyAddr, Family, any_addr},
    limits::map,
    settings::Settings,
    slot::Slot,
    trace::{HOOK_XDP, NO_SERVICE, TraceEvent, TraceFilter, rule},
    verdict::Reason,
};

use crate::{
    bed,
    frames::{self, ACK, SYN},
    rig::{Hook, Rig, rig},
    setup::stats_of,
    talk::Talk,
};

const ALL: TraceFilter = TraceFilter {
    client: [0; 4],
    vip: [0; 4],
    client_port_be: 0,
    vip_port_be: 0,
    family: 0,
    drops_only: 0,
    reserved: [0; 2],
    rate: 1000,
    number: 1,
};

impl Rig {
    fn trace(&mut self, filter: TraceFilter) {
        self.told();
        self.change_settings(|settings| settings.flags |= Settings::FLAG_TRACE);
        let filters = self.ebpf.map_mut(map::TRACE_FILTER).unwrap();
        let mut filters: Array<&mut MapData, TraceFilter> = Array::try_from(filters).unwrap();
        filters.set(0, filter, 0).unwrap();
    }

    /// What was told since the last look.
    fn told(&mut self) -> Vec<TraceEvent> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut(map::TRACE).unwrap()).unwrap();
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<TraceEvent>());
            // SAFETY: there are as many bytes, and any are a valid event.
            events.push(unsafe { record.as_ptr().cast::<TraceEvent>().read_unaligned() });
        }
        events
    }

    fn told_one(&mut self) -> TraceEvent {
        let told = self.told();
        assert_eq!(told.len(), 1, "{told:?}");
        told[0]
    }
}

fn words(address: SocketAddr) -> AnyAddr {
    any_addr(address.ip())
}

#[test]
fn nothing_is_told_while_nobody_asks() {
    rig(|rig| {
        rig.nat(Family::V4, 1);
        rig.trace(ALL);
        rig.change_settings(|settings| settings.flags = 0);
        Talk::new(Family::V4, 1).handshake(rig);
        assert_eq!(rig.told(), []);
    });
}

#[test]
fn event_says_packet_slot_owner_rule_and_verdict_in_both_directions() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            rig.trace(ALL);
            let talk = Talk::new(family, 1);
            let syn = talk.ask(SYN).sequence(77, 0);
            talk.show(rig, &syn);
            let event = rig.told_one();
            assert_eq!((event.src, event.dst), (words(bed::client(family)), words(bed::web(family))));
            assert_eq!(event.src_port_be, bed::client(family).port().to_be());
            assert_eq!((event.to_src, event.to_dst), (any_addr(bed::snat(family)), words(bed::backend(family, 1))));
            assert_eq!(event.to_dst_port_be, bed::backend(family, 1).port().to_be());
            assert_eq!((event.family, event.tcp_flags, event.sequence), (family.number(), SYN, 77));
            assert_eq!((event.hook, event.ifindex, event.stats), (HOOK_XDP, rig.on.front, stats_of(family)));
            assert_eq!((event.rule, event.backend, event.word), (rule::RING, 1, Slot::settled(1).0));
            assert_eq!((event.reason, event.missed), (Reason::ToBackend as u32, 0));
            assert_eq!(event.len as usize, syn.frame().len() - 14);

            let answer = talk.answer(SYN | ACK);
            talk.reply(rig, &answer);
            let event = rig.told_one();
            assert_eq!((event.src, event.dst), (words(bed::backend(family, 1)), any_addr(bed::snat(family))));
            assert_eq!((event.to_src, event.to_dst), (words(bed::web(family)), words(bed::client(family))));
            assert_eq!((event.rule, event.reason), (rule::NAT, Reason::ToClient as u32));
            rig.change_settings(|settings| settings.flags = 0);
        }
    });
}

#[test]
fn only_what_is_asked_for_is_told() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            let client = words(bed::client(family));
            let port_be = bed::client(family).port().to_be();
            let other = Talk::of(family, SocketAddr::new(bed::client(family).ip(), 7), 1);
            let not_served = SocketAddr::new(bed::vip(family), 81);
            let refused = frames::Segment::new(bed::client(family), not_served, SYN);
            let mut count = |filter: TraceFilter| {
                rig.trace(filter);
                for segment in [talk.ask(SYN), talk.ask(ACK), other.ask(SYN), refused.clone()] {
                    rig.run_only(Hook::Xdp, rig.on.front, &segment.frame());
                }
                talk.reply(rig, &talk.answer(ACK));
                rig.told().len()
            };
            assert_eq!(count(ALL), 5);
            assert_eq!(count(TraceFilter { client, ..ALL }), 5);
            assert_eq!(count(TraceFilter { client, client_port_be: port_be, ..ALL }), 4);
            assert_eq!(count(TraceFilter { vip: client, ..ALL }), 5, "either way round");
            assert_eq!(count(TraceFilter { vip: any_addr(bed::vip(family)), vip_port_be: 80_u16.to_be(), ..ALL }), 4);
            assert_eq!(count(TraceFilter { client: words(bed::other_client(family)), ..ALL }), 0);
            assert_eq!(count(TraceFilter { drops_only: 1, ..ALL }), 1);
            assert_eq!(count(TraceFilter { family: 10 - family.number(), ..ALL }), 0);
            rig.change_settings(|settings| settings.flags = 0);
            rig.clear(family);
        }
    });
}

#[test]
fn rate_holds_and_what_is_left_out_is_counted_for_this_trace_alone() {
    rig(|rig| {
        rig.nat(Family::V4, 1);
        let talk = Talk::new(Family::V4, 1);
        rig.trace(TraceFilter { rate: 2, number: 7, ..ALL });
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            talk.show(rig, &talk.ask(SYN));
        }
        let told = rig.told().len();
        // Should the second end in between, there are two of them.
        assert!(told == 2 || (told == 4 && begun.elapsed().as_millis() > 0), "{told}");
        rig.trace(TraceFilter { number: 8, ..ALL });
        talk.show(rig, &talk.ask(SYN));
        assert_eq!(rig.told_one().missed, 0, "another trace's");
        rig.change_settings(|settings| settings.flags = 0);
    });
}

#[test]
fn packet_without_a_whole_tcp_header_is_not_told_with_the_ports_of_another() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            rig.trace(ALL);
            let talk = Talk::new(family, 1);
            let syn = talk.ask(SYN);
            let tagged = frames::tagged(&syn.frame(), &[(0x8100, 5)]);
            let cut = {
                let envelope = frames::Envelope::new(bed::client(family).ip(), bed::vip(family));
                envelope.around(etherparse::IpNumber::TCP, &[0; 4])
            };
            for (frame, reason) in [(tagged, Reason::VlanTag), (cut, Reason::Malformed)] {
                talk.show(rig, &syn);
                rig.told();
                rig.run_only(Hook::Xdp, rig.on.front, &frame);
                let event = rig.told_one();
                assert_eq!((event.src, event.dst), (words(bed::client(family)), words(bed::web(family))));
                assert_eq!((event.src_port_be, event.dst_port_be, event.tcp_flags), (0, 0, 0), "{reason:?}");
                assert_eq!((event.reason, event.stats), (reason as u32, NO_SERVICE));
                assert_eq!((event.to_dst, event.backend, event.word), ([0; 4], 0, 0));
            }
            rig.change_settings(|settings| settings.flags = 0);
        }
    });
}
