//! Decisions told to user space over the ring buffer `TRACE`, while somebody asks for them.

use crate::flow::AnyAddr;

/// Which packets are told: the one entry of `TRACE_FILTER`, read only while
/// [`crate::settings::Settings::FLAG_TRACE`] is set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceFilter {
    /// The client, and the VIP; zero fits all. Compared with the source and the destination of the
    /// packet, either way round.
    pub client: AnyAddr,
    pub vip: AnyAddr,
    /// Ports in network order; zero fits all.
    pub client_port_be: u16,
    pub vip_port_be: u16,
    /// 4 or 6; 0 fits both.
    pub family: u8,
    /// 1: only what is dropped or rejected.
    pub drops_only: u8,
    pub reserved: [u8; 2],
    /// The most events that a CPU tells within a second.
    pub rate: u32,
    /// Which trace this is: what was left out of another one does not count in it.
    pub number: u32,
}

const _: () = assert!(size_of::<TraceFilter>() == 48);

/// One decision.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceEvent {
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
    /// The slot as the program read it; 0 where no slot was asked.
    pub word: u64,
    pub src: AnyAddr,
    pub dst: AnyAddr,
    /// What its 5-tuple becomes in mode `nat`; zero where it stays, or was not sent on.
    pub to_src: AnyAddr,
    pub to_dst: AnyAddr,
    pub src_port_be: u16,
    pub dst_port_be: u16,
    pub to_src_port_be: u16,
    pub to_dst_port_be: u16,
    /// 4 or 6.
    pub family: u8,
    pub tcp_flags: u8,
    /// `HOOK_*`.
    pub hook: u8,
    /// `rule::*`.
    pub rule: u8,
    pub ifindex: u32,
    /// Bytes from the IP header on.
    pub len: u32,
    /// The index of the VIP's counters; [`NO_SERVICE`] if it is no VIP's.
    pub stats: u32,
    /// The place of the slot in `RINGS`.
    pub slot: u32,
    /// An index into `BACKENDS`; 0: none.
    pub backend: u32,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u32,
    pub sequence: u32,
    /// Events that this CPU did not tell since the last one it did, for the rate or for a full
    /// buffer.
    pub missed: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<TraceEvent>() == 128);

/// The value of `stats` where no service was found.
pub const NO_SERVICE: u32 = u32::MAX;

pub const HOOK_XDP: u8 = 1;
pub const HOOK_INGRESS: u8 = 2;
pub const HOOK_EGRESS: u8 = 3;

/// From which rule a packet's backend comes (docs/architecture.md, "The rules of the
/// ring").
pub mod rule {
    /// No backend was chosen.
    pub const NONE: u8 = 0;
    /// The slot is settled: its owner.
    pub const RING: u8 = 1;
    /// A SYN in a slot that is not settled: `current`, noted in HALF_OPEN.
    pub const CURRENT: u8 = 2;
    /// A SYN sent again: where its first went.
    pub const SYN_AGAIN: u8 = 3;
    /// An entry of ESTABLISHED.
    pub const ESTABLISHED: u8 = 4;
    /// An entry of HALF_OPEN that this packet confirmed, or could not for want of room in
    /// ESTABLISHED.
    pub const HALF_OPEN: u8 = 5;
    /// In no table, so it was there before the change: `previous`, noted in SEEN.
    pub const PREVIOUS: u8 = 6;
    /// The same while the slot settles, and for a SYN of such a flow: where SEEN says.
    pub const SEEN: u8 = 7;
    /// In no table, and `previous` lives no more: `current`.
    pub const PREVIOUS_GONE: u8 = 8;
    /// A flow entry of `nat`.
    pub const NAT: u8 = 9;
    /// A SYN whose entry could not be written: where a miss goes.
    pub const NO_ROOM: u8 = 10;

    /// As the API writes it; `None` where no backend was chosen, or by a program of another
    /// version.
    pub const fn name(rule: u8) -> Option<&'static str> {
        Some(match rule {
            RING => "ring",
            CURRENT => "current",
            SYN_AGAIN => "syn-again",
            ESTABLISHED => "established",
            HALF_OPEN => "half-open",
            PREVIOUS => "previous",
            SEEN => "seen",
            PREVIOUS_GONE => "previous-gone",
            NAT => "nat",
            NO_ROOM => "no-room",
            _ => return None,
        })
    }

    /// The same for a person on call; empty where there is no name.
    pub const fn help(rule: u8) -> &'static str {
        match rule {
            RING => "the owner of its slot",
            CURRENT => "a new connection goes to the present owner of its slot",
            SYN_AGAIN => "a SYN that was sent before goes where the first one went",
            ESTABLISHED => "the flow has an entry in ESTABLISHED",
            HALF_OPEN => "the flow has an entry in HALF_OPEN, left by its SYN",
            PREVIOUS => "the flow began before its slot changed, so it stays with the previous owner",
            SEEN => {
                "the flow has an entry in SEEN, and its slot is settling, or this is a SYN on the tuple of a flow \
                that lives"
            }
            PREVIOUS_GONE => {
                "the flow began before its slot changed, but the previous owner is gone, so it goes to the present one"
            }
            NAT => "the flow has an entry of its own, as all in mode nat",
            NO_ROOM => "HALF_OPEN has no room for this new connection, so it goes where its next packets will",
            _ => "",
        }
    }
}

/// As the API writes a `HOOK_*`.
pub const fn hook_name(hook: u8) -> &'static str {
    match hook {
        HOOK_XDP => "xdp",
        HOOK_INGRESS => "ingress",
        HOOK_EGRESS => "egress",
        _ => "unknown",
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: integers only, without padding: the size is asserted above.
    unsafe impl aya::Pod for super::TraceFilter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::TraceEvent {}
}
