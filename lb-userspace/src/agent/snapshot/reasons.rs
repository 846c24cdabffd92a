//! Packet counts by verdict and reason, for each interface and for each service.

use std::net::SocketAddr;

use lb_common::verdict::Reason;

use super::super::core::Agent;
use crate::{dataplane::stats::Sample, view::types::ReasonView};

impl Agent {
    pub(super) fn reasons_by_interface(&self, sample: Option<&Sample>) -> Vec<ReasonView> {
        let Some(sample) = sample else { return Vec::new() };
        let node = self.node.borrow();
        let mut views = Vec::new();
        for hook in &node.hooks {
            for reason in Reason::ALL {
                let count = |sample: &Sample| sample.verdict(hook.ifindex, *reason);
                let interface = Some(hook.name.clone());
                views.push(ReasonView { interface, ..self.reason_view(sample, *reason, count) });
            }
        }
        views
    }

    /// The counts of each VIP, then the packets that no VIP has counted.
    pub(super) fn reasons_by_service(&self, sample: Option<&Sample>) -> Vec<ReasonView> {
        let Some(sample) = sample else { return Vec::new() };
        let of_vips = self.plan.target.services.iter().flat_map(|(vip, entry)| {
            let seen = Reason::ALL.iter().filter(|reason| sample.refusal(entry.stats, **reason) > 0);
            seen.map(|reason| {
                let count = |sample: &Sample| sample.refusal(entry.stats, *reason);
                self.of_vip(*vip, entry.id, self.reason_view(sample, *reason, count))
            })
        });
        let of_none = Reason::ALL.iter().map(|reason| {
            let count = |sample: &Sample| sample.total(*reason as u32).saturating_sub(sample.refused_in_all(*reason));
            self.reason_view(sample, *reason, count)
        });
        of_vips.chain(of_none).collect()
    }

    fn of_vip(&self, vip: SocketAddr, service: u32, view: ReasonView) -> ReasonView {
        ReasonView { service: Some(self.service_name(service)), vip: Some(vip), ..view }
    }

    fn reason_view(&self, sample: &Sample, reason: Reason, count: impl Fn(&Sample) -> u64) -> ReasonView {
        ReasonView {
            interface: None,
            service: None,
            vip: None,
            kind: reason.kind().name().to_owned(),
            reason: reason.name().to_owned(),
            help: reason.help().to_owned(),
            packets_total: count(sample),
            packets_per_second: sample.per_second(self.samples.older.as_ref(), count),
        }
    }
}
