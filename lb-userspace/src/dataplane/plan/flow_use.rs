//! What the flows of a node still use, which a plan must leave where it is.

use std::{collections::BTreeSet, net::IpAddr};

/// What flows still use, as of the last complete pass over the flow tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowUse {
    /// When the pass began, in CLOCK_BOOTTIME; 0 if there was no pass yet.
    pub scanned_at_ns: u64,
    /// Indexes of backends that some entry names.
    pub backends: BTreeSet<u32>,
    /// Those of them with a connection that is not over.
    pub busy: BTreeSet<u32>,
    /// Indexes of the counters of VIPs that some entry names.
    pub vips: BTreeSet<u32>,
    /// Those of them with a connection that is not over.
    pub busy_vips: BTreeSet<u32>,
    /// SNAT addresses.
    pub snat: BTreeSet<IpAddr>,
}

impl FlowUse {
    /// By this time, a SYN handled with the state before a change has either created its flow or
    /// never will.
    const IN_FLIGHT_NS: u64 = 1_000_000_000;

    /// Whether the pass would have seen every flow that began before `since_ns`.
    pub fn is_after(&self, since_ns: u64) -> bool {
        self.scanned_at_ns > since_ns.saturating_add(Self::IN_FLIGHT_NS)
    }
}
