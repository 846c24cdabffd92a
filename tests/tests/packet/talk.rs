//! A TCP conversation through Weir, packet by packet: what each end sends, and what the other must
//! see of it.

use std::net::SocketAddr;

use lb_common::{flow::Family, verdict::Reason};

use crate::{
    bed::{self, BACK_MAC, CLIENT_MAC, FRONT_MAC, backend_mac},
    frames::{ACK, Mac, SYN, Segment},
    rig::{Action, Hook, Ran, Rig},
    tables::{Entry, Pair, Table, pair},
};

pub const CLIENT_SEQUENCE: u32 = 1000;
pub const SERVER_SEQUENCE: u32 = 5000;

/// Who talks, and which addresses the balancer uses in between.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub family: Family,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// What the backend takes for the client.
    pub snat: SocketAddr,
    pub backend: SocketAddr,
    pub backend_mac: Mac,
}

impl Talk {
    /// The client with backend `number`, its port kept.
    pub fn new(family: Family, number: u8) -> Self {
        Self::of(family, bed::client(family), number)
    }

    pub fn of(family: Family, client: SocketAddr, number: u8) -> Self {
        Self {
            family,
            client,
            vip: bed::web(family),
            snat: SocketAddr::new(bed::snat(family), client.port()),
            backend: bed::backend(family, number),
            backend_mac: backend_mac(number),
        }
    }

    /// A packet of the client as it comes in.
    pub fn ask(&self, flags: u8) -> Segment {
        let segment = Segment::new(self.client, self.vip, flags);
        if flags & SYN != 0 { segment } else { segment.sequence(CLIENT_SEQUENCE + 1, SERVER_SEQUENCE + 1) }
    }

    /// The same as the backend must see it.
    pub fn asked(&self, segment: &Segment) -> Segment {
        let ttl = segment.envelope.ttl - 1;
        segment.clone().between(self.snat, self.backend).ttl(ttl).macs(BACK_MAC, self.backend_mac)
    }

    /// A packet of the backend as it comes in.
    pub fn answer(&self, flags: u8) -> Segment {
        let sequence = if flags & SYN != 0 { SERVER_SEQUENCE } else { SERVER_SEQUENCE + 1 };
        let segment = Segment::new(self.backend, self.snat, flags).macs(self.backend_mac, BACK_MAC);
        segment.sequence(sequence, CLIENT_SEQUENCE + 1)
    }

    /// The same as the client must see it.
    pub fn answered(&self, segment: &Segment) -> Segment {
        let ttl = segment.envelope.ttl - 1;
        segment.clone().between(self.vip, self.client).ttl(ttl).macs(FRONT_MAC, CLIENT_MAC)
    }

    /// The client sends it and the backend gets it.
    #[track_caller]
    pub fn send(&self, rig: &Rig, segment: &Segment) {
        let ran = self.show(rig, segment);
        ran.is(Action::Redirect, Reason::ToBackend, &self.asked(segment).frame());
    }

    /// The client sends it.
    #[track_caller]
    pub fn show(&self, rig: &Rig, segment: &Segment) -> Ran {
        rig.run(Hook::Xdp, rig.on.front, &segment.frame())
    }

    /// The backend sends it and the client gets it.
    #[track_caller]
    pub fn reply(&self, rig: &Rig, segment: &Segment) {
        let ran = rig.run(Hook::Xdp, rig.on.back, &segment.frame());
        ran.is(Action::Redirect, Reason::ToClient, &self.answered(segment).frame());
    }

    #[track_caller]
    pub fn handshake(&self, rig: &Rig) {
        self.send(rig, &self.ask(SYN));
        self.reply(rig, &self.answer(SYN | ACK));
        self.send(rig, &self.ask(ACK));
    }

    /// The key of the entry of the client's direction.
    pub fn forward(&self) -> Pair {
        pair(self.client, self.vip)
    }

    /// The key of the entry of the way back.
    pub fn back(&self) -> Pair {
        pair(self.backend, self.snat)
    }

    /// What the entry of the client's direction must say.
    pub fn back_way(&self) -> Pair {
        pair(self.snat, self.backend)
    }

    /// What the entry of the way back must say.
    pub fn client_way(&self) -> Pair {
        pair(self.vip, self.client)
    }

    /// Both entries, the client's direction first, that must be there.
    #[track_caller]
    pub fn entries(&self, rig: &mut Rig, table: Table) -> [Entry; 2] {
        let mut find = |key| rig.flow(self.family, table, key);
        match [find(self.forward()), find(self.back())] {
            [Some(forward), Some(back)] => [forward, back],
            found => panic!("{table:?} holds of {self:?}: {found:?}"),
        }
    }

    #[track_caller]
    pub fn is_absent(&self, rig: &mut Rig) {
        for table in [Table::HalfOpen, Table::Established] {
            for key in [self.forward(), self.back()] {
                assert_eq!(rig.flow(self.family, table, key), None, "{table:?} holds {key:?}");
            }
        }
    }
}

/// The reset that answers `segment` as it came, by RFC 9293, section 3.10.7.1 (CLOSED state).
pub fn reset_of(segment: &Segment) -> Segment {
    use crate::frames::{FIN, RST};
    let envelope = &segment.envelope;
    let end = |port, ip| SocketAddr::new(ip, port);
    let mut reset = Segment::new(end(segment.dst_port, envelope.dst), end(segment.src_port, envelope.src), RST)
        .macs(envelope.dst_mac, envelope.src_mac)
        .with(|envelope| envelope.id = 0);
    reset.window = 0;
    if segment.flags & ACK != 0 {
        return reset.sequence(segment.acknowledgement, 0);
    }
    let length =
        segment.payload.len() as u32 + u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
    reset.flags |= ACK;
    reset.sequence(0, segment.sequence.wrapping_add(length))
}
