//! The way to the next hop: through XDP, or the original frame to TC, which does the same.

use std::net::SocketAddr;

use lb_common::{flow::Family, verdict::Reason};

use crate::{
    bed::{self, BACK_MAC, BACK_ROUTER_MAC, FRONT_BACKEND_MAC, FRONT_MAC, SIDE_BACKEND_MAC, SIDE_MAC},
    frames::{ACK, SYN, Segment},
    rig::{Action, Hook, Rig, rig},
    talk::Talk,
};

/// A service over one backend at this address.
fn over(rig: &mut Rig, family: Family, backend: SocketAddr) -> Talk {
    rig.nat(family, 1);
    rig.set_backend(1, rig.backend_entry(family, backend));
    Talk { backend, ..Talk::new(family, 1) }
}

/// What TC makes of a frame: all but the MAC addresses, which the kernel sets when it knows the
/// neighbour.
fn by_tc(segment: &Segment, out: &Segment) -> Vec<u8> {
    out.clone().macs(segment.envelope.src_mac, segment.envelope.dst_mac).frame()
}

/// XDP passes the original for this reason, and TC sends it on.
#[track_caller]
fn goes_by_tc(rig: &Rig, ifindex: u32, segment: &Segment, out: &Segment, reason: Reason, by: Reason) {
    let frame = segment.frame();
    rig.run(Hook::Xdp, ifindex, &frame).is(Action::Pass, reason, &frame);
    rig.run(Hook::Ingress, ifindex, &frame).is(Action::Redirect, by, &by_tc(segment, out));
}

#[test]
fn frame_for_a_neighbour_that_is_not_resolved_passes_unchanged_and_tc_sends_it_on() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = over(rig, family, bed::silent_backend(family));
            for flags in [SYN, ACK] {
                let segment = talk.ask(flags).timestamp(3).payload(b"odd");
                goes_by_tc(
                    rig,
                    rig.on.front,
                    &segment,
                    &talk.asked(&segment),
                    Reason::NoNeighbour,
                    Reason::ToBackendByTc,
                );
            }
        }
    });
}

#[test]
fn frame_whose_way_out_has_no_xdp_passes_unchanged_and_tc_sends_it_on() {
    rig(|rig| {
        for family in Family::BOTH {
            let mut talk = over(rig, family, bed::side_backend(family));
            talk.backend_mac = SIDE_BACKEND_MAC;
            let syn = talk.ask(SYN);
            goes_by_tc(rig, rig.on.front, &syn, &talk.asked(&syn), Reason::NoXdpWayOut, Reason::ToBackendByTc);

            rig.set_way_out(rig.on.front, false);
            let answer = talk.answer(SYN | ACK).macs(SIDE_BACKEND_MAC, SIDE_MAC);
            goes_by_tc(rig, rig.on.side, &answer, &talk.answered(&answer), Reason::NoXdpWayOut, Reason::ToClientByTc);
            rig.set_way_out(rig.on.front, true);

            // Once XDP can send there it does.
            rig.set_way_out(rig.on.side, true);
            let ack = talk.ask(ACK);
            let out = talk.asked(&ack).macs(SIDE_MAC, SIDE_BACKEND_MAC);
            talk.show(rig, &ack).is(Action::Redirect, Reason::ToBackend, &out.frame());
            rig.set_way_out(rig.on.side, false);
        }
    });
}

#[test]
fn backend_behind_a_router_is_reached_through_the_router() {
    rig(|rig| {
        for family in Family::BOTH {
            let mut talk = over(rig, family, bed::routed_backend(family));
            talk.backend_mac = BACK_ROUTER_MAC;
            talk.handshake(rig);
        }
    });
}

#[test]
fn frame_leaves_by_the_interface_on_which_it_came_if_that_is_the_way() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = over(rig, family, bed::front_backend(family));
            // No matter whether redirects to it are possible.
            rig.set_way_out(rig.on.front, false);
            let syn = talk.ask(SYN);
            let out = talk.asked(&syn).macs(FRONT_MAC, FRONT_BACKEND_MAC);
            talk.show(rig, &syn).is(Action::Tx, Reason::ToBackend, &out.frame());
            let answer = talk.answer(SYN | ACK).macs(FRONT_BACKEND_MAC, FRONT_MAC);
            let ran = rig.run(Hook::Xdp, rig.on.front, &answer.frame());
            ran.is(Action::Tx, Reason::ToClient, &talk.answered(&answer).frame());
            rig.set_way_out(rig.on.front, true);
        }
    });
}

#[test]
fn frame_whose_ttl_is_used_up_is_dropped() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            for ttl in [0, 1] {
                let (ask, answer) = (talk.ask(ACK).ttl(ttl).frame(), talk.answer(ACK).ttl(ttl).frame());
                for hook in [Hook::Xdp, Hook::Ingress] {
                    rig.run(hook, rig.on.front, &ask).is_dropped(Reason::TtlExpired);
                    rig.run(hook, rig.on.back, &answer).is_dropped(Reason::TtlExpired);
                }
            }
            talk.send(rig, &talk.ask(ACK).ttl(2));
            talk.reply(rig, &talk.answer(ACK).ttl(255));
        }
    });
}

#[test]
fn frame_without_a_route_is_dropped() {
    rig(|rig| {
        for family in Family::BOTH {
            let talk = over(rig, family, bed::lost_backend(family));
            for hook in [Hook::Xdp, Hook::Ingress] {
                rig.run(hook, rig.on.front, &talk.ask(SYN).frame()).is_dropped(Reason::NoRoute);
            }
        }
    });
}

#[test]
fn frame_larger_than_the_mtu_of_its_way_out_is_left_to_tc_which_drops_it() {
    rig(|rig| {
        bed::batch("link set back mtu 1300\n");
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let large = talk.ask(ACK).payload(&[7; 1400]).frame();
            rig.run(Hook::Xdp, rig.on.front, &large).is(Action::Pass, Reason::NoXdpWayOut, &large);
            rig.run(Hook::Ingress, rig.on.front, &large).is_dropped(Reason::TooBig);
            talk.send(rig, &talk.ask(ACK).payload(&[7; 1200]));
        }
    });
}

#[test]
fn without_forwarding_on_the_interface_nothing_is_forwarded_and_that_is_counted() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let number = family.number();
            for (interface, forwarding) in [("front", "0"), ("front", "1")] {
                let path = format!("/proc/sys/net/ipv{number}/conf/{interface}/forwarding");
                std::fs::write(&path, forwarding).unwrap();
                let ask = talk.ask(ACK);
                if forwarding == "1" {
                    talk.send(rig, &ask);
                } else {
                    talk.show(rig, &ask).is(Action::Pass, Reason::NoXdpWayOut, &ask.frame());
                    rig.run(Hook::Ingress, rig.on.front, &ask.frame()).is_dropped(Reason::NoRoute);
                }
            }
            assert_eq!(talk.asked(&talk.ask(ACK)).envelope.src_mac, BACK_MAC);
        }
    });
}
