//! What the program decides for a packet, always with a reason, and every reason with a counter.

use crate::limits::MAX_INTERFACES;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Left to the stack.
    Pass,
    /// Sent on to a backend or a client.
    Forward,
    /// Answered by Weir: a reset, an echo reply.
    Reject,
    /// Ended here.
    Drop,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Pass => "pass",
            Kind::Forward => "forward",
            Kind::Reject => "reject",
            Kind::Drop => "drop",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $kind:ident, $name:literal;)+) => {
        /// Why a packet was treated as it was. The number is its place in `VERDICTS`.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            pub const fn kind(self) -> Kind {
                match self {
                    $(Reason::$variant => Kind::$kind,)+
                }
            }

            /// As metrics and the CLI write it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)+
                }
            }

            /// One sentence for a person who sees it counted.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Reason::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

reasons! {
    /// Not addressed to a VIP, nor an answer to one of our flows: untouched.
    NotVip = 0, Pass, "not_vip";
    /// Not IP, or not even a whole IP header: untouched.
    NotIp = 1, Pass, "not_ip";
    /// To a VIP that is also an address of this node, on a port that is not served: the node's own.
    NodePort = 2, Pass, "node_port";
    /// A VLAN tag in front of a packet to a VIP: left to the VLAN's own interface, which can be
    /// listed in `interfaces`.
    VlanTag = 3, Pass, "vlan_tag";
    /// The next hop is not resolved yet: the original frame goes to weir_ingress at TC, which
    /// forwards it.
    NoNeighbour = 4, Pass, "no_neighbour";
    /// The way out is an interface where XDP cannot send: weir_ingress at TC forwards it.
    NoXdpWayOut = 5, Pass, "no_xdp_way_out";
    /// Rewritten, for a backend on this node: up the stack.
    LocalBackend = 6, Pass, "local_backend";
    /// Encapsulated, to this node, but not from a peer of `tunnel.peers`: left to the stack.
    NotPeer = 8, Pass, "not_peer";
    /// From a peer: the outer header taken off, for a backend on this node: up the stack.
    Decapsulated = 9, Pass, "decapsulated";
    /// Neighbour discovery or another ICMPv6 message that the node itself must see.
    NodeIcmp = 7, Pass, "node_icmp";

    /// To a backend, by XDP.
    ToBackend = 16, Forward, "to_backend";
    /// An answer to a client, by XDP.
    ToClient = 17, Forward, "to_client";
    /// To a backend, by weir_ingress at TC.
    ToBackendByTc = 18, Forward, "to_backend_tc";
    /// An answer to a client, by a TC program.
    ToClientByTc = 19, Forward, "to_client_tc";
    /// An ICMP error about a flow of ours, translated and sent to whom it concerns.
    IcmpError = 20, Forward, "icmp_error";

    /// No backend of the service is eligible: reset.
    NoBackend = 24, Reject, "no_backend";
    /// TCP to a port of a VIP that is not served: reset.
    PortNotServed = 25, Reject, "port_not_served";
    /// Of a connection whose backend is dead or gone, with `onDead: reset`: reset.
    BackendDead = 30, Reject, "backend_dead";
    /// Larger than what fits in the tunnel to the backend: answered with ICMP, so that the client
    /// sends less at once.
    PacketTooBig = 31, Reject, "packet_too_big";
    /// In the middle of a connection that this node does not know: reset.
    UnknownFlow = 26, Reject, "unknown_flow";
    /// Of a connection whose backend is disabled or gone: reset.
    BackendGone = 27, Reject, "backend_gone";
    /// No SNAT port was free for the backend: reset.
    PortsExhausted = 28, Reject, "ports_exhausted";
    /// An echo request to a VIP, answered.
    Echo = 29, Reject, "echo";

    /// To a VIP, with lengths or header fields that contradict each other.
    Malformed = 40, Drop, "malformed";
    /// A fragment to a VIP: only the first would tell the port.
    Fragment = 41, Drop, "fragment";
    /// IPv6 to a VIP with more extension headers than are followed.
    ExtensionHeaders = 42, Drop, "extension_headers";
    /// To a VIP, neither TCP nor an echo request nor an ICMP error about a flow of ours.
    NotServedProtocol = 43, Drop, "protocol_not_served";
    /// Its TTL or hop limit is used up.
    TtlExpired = 44, Drop, "ttl_expired";
    /// Larger than the MTU of the way out.
    TooBig = 45, Drop, "too_big";
    /// No route to the backend or the client, or forwarding is off on the interface where the
    /// packet came in.
    NoRoute = 46, Drop, "no_route";
    /// A `dsr-l2` backend that is behind a router.
    NotOnLink = 47, Drop, "not_on_link";
    /// The port that was to be taken over went to another SYN in the same instant: the client sends
    /// its own again.
    FlowTable = 48, Drop, "flow_table";
    /// The kernel refused a change of the packet that should be possible.
    Rewrite = 49, Drop, "rewrite_failed";
    /// A reset with no connection behind it: nothing to answer.
    StrayReset = 50, Drop, "stray_reset";
    /// Of a connection whose backend is dead or gone, with `onDead: drop`.
    BackendDeadDrop = 52, Drop, "backend_dead_drop";
    /// From a peer, but what is in it is not a whole IP packet.
    BadInner = 53, Drop, "bad_inner";
    /// Not known in the moment in which another build takes over and some hooks still run the one
    /// before: the other end sends it again.
    Handover = 54, Drop, "handover";
    /// At TC, when XDP has already passed the packet on and what it saw has changed since.
    Raced = 51, Drop, "raced";
}

/// Places kept for each interface in `VERDICTS`.
pub const REASONS: u32 = 64;
/// Places of `VERDICTS`.
pub const VERDICTS_LEN: u32 = MAX_INTERFACES * REASONS;

/// Not a verdict: flows that stay half-open because the established table is full; counted in
/// `VERDICTS` beside the verdicts.
pub const EVENT_ESTABLISHED_FULL: u32 = 60;
/// Not a verdict: half-open flows whose port a newer one took because the pool was used up.
pub const EVENT_HALF_OPEN_STOLEN: u32 = 61;
/// Not a verdict: closed tuples used again before their time was over because the pool was used up.
pub const EVENT_CLOSED_REUSED: u32 = 62;
/// Not a verdict: exceptions that found no room in ESTABLISHED and stay half-open.
pub const EVENT_EXCEPTIONS_FULL: u32 = 59;
/// Not a verdict: SYNs whose exception could not be written to HALF_OPEN; they went where a miss
/// goes.
pub const EVENT_HALF_OPEN_FULL: u32 = 58;
/// Not a verdict: flows seen through `previous` that could not be noted in SEEN.
pub const EVENT_SEEN_FULL: u32 = 57;
/// Not a verdict: SYNs sent again, which followed their first.
pub const EVENT_SYN_AGAIN: u32 = 56;
/// Not a verdict: packets that were too big for their tunnel and dropped without an answer, because
/// enough was said already.
pub const EVENT_TOO_BIG_UNSAID: u32 = 55;

/// All events, behind the reasons.
pub const EVENTS: core::ops::RangeInclusive<u32> = EVENT_TOO_BIG_UNSAID..=EVENT_CLOSED_REUSED;

/// The counter of `place` (a [`Reason`] as a number, or an `EVENT_*`) on the interface with this
/// index.
#[inline(always)]
pub const fn verdict_index(ifindex: u32, place: u32) -> u32 {
    (ifindex % MAX_INTERFACES) * REASONS + place
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_place_and_a_name_of_its_own() {
        let places: BTreeSet<u32> = Reason::ALL.iter().map(|reason| *reason as u32).collect();
        let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!((places.len(), names.len()), (Reason::ALL.len(), Reason::ALL.len()));
        assert!(places.iter().all(|place| *place < EVENT_TOO_BIG_UNSAID));
        assert!(Reason::ALL.iter().all(|reason| reason.help().ends_with('.')));
    }
}
