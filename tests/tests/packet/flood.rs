//! A flood of SYNs, and of SYNs with guessed acknowledgements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::flow::Family;

use crate::{
    bed,
    frames::{ACK, SYN},
    rig::{Hook, rig},
    tables::Table,
    talk::{CLIENT_SEQUENCE, SERVER_SEQUENCE, Talk},
};

const SYNS: u32 = 200_000;

#[test]
fn flood_of_syns_leaves_established_flows_alone() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            let before = talk.entries(rig, Table::Established);
            // The half-open table is far smaller than the flood, in either family; half of it is
            // enough for the second.
            let syns = if family == Family::V4 { SYNS } else { SYNS / 2 };
            for number in 0..syns {
                let ip = match family {
                    Family::V4 => IpAddr::from(Ipv4Addr::from(0xc612_0000 + number / 50_000)),
                    Family::V6 => IpAddr::from(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, (number / 50_000) as u16)),
                };
                let flooder = Talk::of(family, (ip, 1024 + (number % 50_000) as u16).into(), 1);
                rig.run_only(Hook::Xdp, rig.on.front, &flooder.ask(SYN).frame());
                if number % 10 == 0 {
                    let guess = number.wrapping_mul(0x9e37_79b9);
                    let ack = flooder.ask(ACK).sequence(CLIENT_SEQUENCE + 1, guess);
                    rig.run_only(Hook::Xdp, rig.on.front, &ack.frame());
                }
            }
            assert_eq!(talk.entries(rig, Table::Established), before);
            assert_eq!(rig.tables(family).flows(Table::Established).len(), 2);
            talk.send(rig, &talk.ask(ACK).payload(b"still here").sequence(CLIENT_SEQUENCE + 1, SERVER_SEQUENCE + 1));
            talk.reply(rig, &talk.answer(ACK).payload(b"so am I"));

            // A second after the flood there is room for a new one.
            rig.age(family, Table::HalfOpen, 2);
            let new = Talk::of(family, bed::other_client(family), 1);
            let ran = new.show(rig, &new.ask(SYN));
            assert!(ran.counted.contains_key("to_backend"), "{ran:?}");
        }
    });
}
