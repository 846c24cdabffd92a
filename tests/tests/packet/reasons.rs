//! Every verdict that the programs can give, given at least once.

use lb_common::{
    backend::{Backend, WAY_DSR_L2},
    flow::Family,
    nat::NAT_ESTABLISHED,
    ports::PortPool,
    service::{MODE_DSR_L2, address},
    settings::Settings,
    slot::Slot,
    verdict::Reason,
};

use crate::{
    bed,
    frames::{self, ACK, Envelope, RST, SYN, Segment, tagged},
    rig::{Hook, Ran, Rig, rig},
    setup::{RING_LEN, ring_offset},
    tables::{Entry, Table},
    talk::Talk,
};

#[test]
fn every_reason_is_given_by_some_packet() {
    rig(|rig| {
        for family in Family::BOTH {
            for reason in Reason::ALL {
                rig.clear(family);
                rig.nat(family, 1);
                match given(rig, family, *reason) {
                    Some(ran) => assert_eq!(
                        ran.counted.iter().collect::<Vec<_>>(),
                        [(&reason.name(), &1)],
                        "{family:?}: a packet for {reason:?}"
                    ),
                    None => println!("{family:?}: no packet gets {reason:?}"),
                }
            }
        }
    });
}

/// A packet that gets this verdict. `None`: no packet can, see there.
fn given(rig: &mut Rig, family: Family, reason: Reason) -> Option<Ran> {
    let talk = Talk::new(family, 1);
    let (front, back) = (rig.on.front, rig.on.back);
    let (syn, ack) = (talk.ask(SYN).frame(), talk.ask(ACK).frame());
    let l3 = 14;
    let through = |rig: &mut Rig, hook, backend: Backend| {
        rig.set_backend(1, backend);
        rig.run(hook, front, &talk.ask(SYN).frame())
    };
    Some(match reason {
        Reason::NotVip => {
            rig.run(Hook::Xdp, front, &Segment::new(talk.client, (bed::stranger(family), 80).into(), SYN).frame())
        }
        Reason::NotIp => rig.run(Hook::Xdp, front, &[0; 60]),
        Reason::NodePort => {
            rig.set_address(talk.vip.ip(), address::VIP | address::NODE);
            rig.run(Hook::Xdp, front, &frames::udp(talk.client, talk.vip, b""))
        }
        Reason::VlanTag => rig.run(Hook::Xdp, front, &tagged(&syn, &[(0x8100, 1)])),
        Reason::NoNeighbour => {
            let backend = rig.backend_entry(family, bed::silent_backend(family));
            through(rig, Hook::Xdp, backend)
        }
        Reason::NoXdpWayOut => {
            let backend = rig.backend_entry(family, bed::side_backend(family));
            through(rig, Hook::Xdp, backend)
        }
        Reason::LocalBackend => {
            let mut backend = rig.backend_entry(family, bed::local_backend(family));
            backend.flags |= Backend::FLAG_LOCAL;
            through(rig, Hook::Xdp, backend)
        }
        // Only IPv6 has neighbour discovery in ICMP.
        Reason::NodeIcmp if family == Family::V4 => return None,
        Reason::NodeIcmp => {
            let envelope = Envelope::new(talk.client.ip(), talk.vip.ip());
            rig.run(Hook::Xdp, front, &frames::icmp(&envelope, 135, 0, [0; 4], &[0; 16]))
        }
        Reason::ToBackend => rig.run(Hook::Xdp, front, &syn),
        Reason::ToClient => {
            talk.send(rig, &talk.ask(SYN));
            rig.run(Hook::Xdp, back, &talk.answer(SYN | ACK).frame())
        }
        Reason::ToBackendByTc => rig.run(Hook::Ingress, front, &syn),
        Reason::ToClientByTc => {
            talk.send(rig, &talk.ask(SYN));
            rig.run(Hook::Ingress, back, &talk.answer(SYN | ACK).frame())
        }
        Reason::IcmpError => {
            talk.handshake(rig);
            let left = talk.answered(&talk.answer(ACK));
            let quote = left.envelope.packet(etherparse::IpNumber::TCP, &left.tcp());
            let envelope = Envelope::new(bed::other_client(family).ip(), talk.vip.ip());
            let kind = if family == Family::V4 { 11 } else { 3 };
            rig.run(Hook::Xdp, front, &frames::icmp(&envelope, kind, 0, [0; 4], &quote))
        }
        Reason::NoBackend => {
            rig.set_slots(family, |_| 0);
            rig.run(Hook::Xdp, front, &syn)
        }
        Reason::PortNotServed => {
            rig.run(Hook::Xdp, front, &talk.ask(SYN).between(talk.client, (talk.vip.ip(), 81).into()).frame())
        }
        Reason::UnknownFlow => rig.run(Hook::Xdp, front, &ack),
        Reason::Handover => {
            rig.change_settings(|settings| settings.flags = Settings::FLAG_HANDOVER);
            rig.run(Hook::Xdp, front, &ack)
        }
        Reason::BackendGone => {
            talk.handshake(rig);
            rig.change_backend(1, |backend| backend.flags = 0);
            rig.run(Hook::Xdp, front, &ack)
        }
        Reason::PortsExhausted => {
            rig.change_settings(|settings: &mut Settings| settings.ports = PortPool::new([], 1));
            rig.run(Hook::Xdp, front, &syn)
        }
        Reason::Echo => {
            let envelope = Envelope::new(talk.client.ip(), talk.vip.ip());
            let kind = if family == Family::V4 { 8 } else { 128 };
            rig.run(Hook::Xdp, front, &frames::icmp(&envelope, kind, 0, [0; 4], b""))
        }
        Reason::Malformed => {
            let mut frame = syn;
            frame[l3] = 0;
            rig.run(Hook::Xdp, front, &frame)
        }
        Reason::Fragment => {
            let fragment = talk.ask(SYN).with(|ip| match family {
                Family::V4 => ip.fragment = (0, true),
                Family::V6 => ip.extensions = Some((44, vec![6, 0, 0, 1, 0, 0, 0, 0])),
            });
            rig.run(Hook::Xdp, front, &fragment.frame())
        }
        // Only IPv6 has extension headers.
        Reason::ExtensionHeaders if family == Family::V4 => return Some(alike(rig, reason)),
        Reason::ExtensionHeaders => {
            let many = talk.ask(SYN).with(|ip| ip.extensions = Some((60, [60, 0, 1, 4, 0, 0, 0, 0].repeat(7))));
            rig.run(Hook::Xdp, front, &many.frame())
        }
        Reason::NotServedProtocol => rig.run(Hook::Xdp, front, &frames::udp(talk.client, talk.vip, b"")),
        Reason::TtlExpired => rig.run(Hook::Xdp, front, &talk.ask(SYN).ttl(1).frame()),
        Reason::TooBig => {
            bed::batch("link set back mtu 1300\n");
            let ran = rig.run(Hook::Ingress, front, &talk.ask(SYN).payload(&[0; 1400]).frame());
            bed::batch("link set back mtu 1500\n");
            ran
        }
        Reason::NoRoute => {
            let backend = rig.backend_entry(family, bed::lost_backend(family));
            through(rig, Hook::Xdp, backend)
        }
        Reason::NotOnLink => {
            rig.set_service(family, |service| service.mode = MODE_DSR_L2);
            rig.set_backend(1, Backend { way: WAY_DSR_L2, ..rig.backend_entry(family, bed::routed_backend(family)) });
            rig.run(Hook::Xdp, front, &ack)
        }
        Reason::BackendDead | Reason::BackendDeadDrop => {
            let flag = if reason == Reason::BackendDead { Backend::FLAG_RESET } else { Backend::FLAG_DROP };
            rig.set_service(family, |service| service.mode = MODE_DSR_L2);
            rig.change_backend(1, |backend| backend.flags = flag);
            for slot in 0..RING_LEN {
                rig.rings.set(ring_offset(family) + slot, Slot::new(2, 1, 0).0, 0).unwrap();
            }
            rig.run(Hook::Xdp, front, &ack)
        }
        // See decap.rs and too_big.rs.
        Reason::NotPeer | Reason::Decapsulated | Reason::PacketTooBig | Reason::BadInner => return None,
        // Takes two CPUs at the same tuple in the same instant.
        Reason::FlowTable => return None,
        // The kernel refuses a change only when memory is short, or the packet is another one than
        // it was when it was read.
        Reason::Rewrite => return None,
        Reason::StrayReset => rig.run(Hook::Xdp, front, &talk.ask(RST).frame()),
        Reason::Raced => rig.run(Hook::Ingress, front, &ack),
    })
}

/// The same reason by a packet of the other family.
fn alike(rig: &mut Rig, reason: Reason) -> Ran {
    rig.nat(Family::V6, 1);
    given(rig, Family::V6, reason).unwrap()
}

#[test]
fn entry_that_the_agent_finds_is_the_one_that_the_program_wrote() {
    rig(|rig| {
        for family in Family::BOTH {
            rig.nat(family, 1);
            let talk = Talk::new(family, 1);
            talk.handshake(rig);
            // Written back as it was read it is the same flow: both sides agree on the layout.
            let entries = talk.entries(rig, Table::Established);
            for (key, entry) in [talk.forward(), talk.back()].into_iter().zip(entries) {
                assert_eq!(entry.flags & NAT_ESTABLISHED, NAT_ESTABLISHED);
                rig.tables(family).remove_flow(Table::Established, key);
                rig.tables(family).set_flow(Table::Established, key, Entry { ..entry });
            }
            talk.send(rig, &talk.ask(ACK));
            talk.reply(rig, &talk.answer(ACK));
        }
    });
}
