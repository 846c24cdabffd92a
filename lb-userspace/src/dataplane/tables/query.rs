//! Which flows to list.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::flow::{Addr, Family, Flow, ip_addr};

/// A filter for flows; a field that is `None` matches every flow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowQuery {
    pub client: Option<IpAddr>,
    pub vip: Option<IpAddr>,
    /// Indexes of backends.
    pub backends: Option<BTreeSet<u32>>,
    pub limit: usize,
}

impl FlowQuery {
    pub(super) fn fits<A: Addr>(&self, family: Family, flow: &Flow<A>, backend: u32) -> bool {
        let is =
            |wanted: Option<IpAddr>, found: A| wanted.is_none_or(|wanted| ip_addr(family, found.to_any()) == wanted);
        is(self.client, flow.src)
            && is(self.vip, flow.dst)
            && self.backends.as_ref().is_none_or(|backends| backends.contains(&backend))
    }
}
