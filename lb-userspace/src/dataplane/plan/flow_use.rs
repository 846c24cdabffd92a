//! What the flows of a node still use, so that a plan must not give it to others.

use std::{collections::BTreeSet, net::IpAddr};

/// What flows still use, as of the last complete pass over the flow tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowUse {
    /// When the pass began, in CLOCK_BOOTTIME; 0 if there was no pass yet.
    pub scanned_at_ns: u64,
    /// Indexes of backends that some flow entry names.
    pub backends: BTreeSet<u32>,
    /// The indexes in `backends` that have a connection that is not over.
    pub busy: BTreeSet<u32>,
    /// Indexes of the counters of VIPs that some flow entry names.
    pub vips: BTreeSet<u32>,
    /// The indexes in `vips` that have a connection that is not over.
    pub busy_vips: BTreeSet<u32>,
    /// The addresses under which backends see clients; under SNAT, these are SNAT addresses.
    pub snat: BTreeSet<IpAddr>,
}

impl FlowUse {
    /// This long after a change, a SYN that was handled with the state before the change has either
    /// created its flow or never will.
    const IN_FLIGHT_NS: u64 = 1_000_000_000;

    /// Whether the pass would have seen every flow that began before `since_ns`.
    pub fn is_after(&self, since_ns: u64) -> bool {
        self.scanned_at_ns > since_ns.saturating_add(Self::IN_FLIGHT_NS)
    }
}
