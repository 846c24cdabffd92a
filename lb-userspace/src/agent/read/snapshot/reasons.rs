//! Packet counts by verdict and reason, for each interface and for each service.

use std::net::SocketAddr;

use lb_common::{service::Service, verdict::Reason};

use super::moment::Moment;
use crate::{dataplane::stats::Sample, state::ServiceName, view::types::ReasonView};

impl Moment {
    pub fn reasons_by_interface(&self) -> Vec<ReasonView> {
        let Some(sample) = &self.sampled.now else { return Vec::new() };
        let mut views = Vec::new();
        for hook in &self.node.hooks {
            for reason in Reason::ALL {
                let count = |sample: &Sample| sample.verdict(hook.ifindex, *reason);
                let interface = Some(hook.name.clone());
                views.push(ReasonView { interface, ..self.reason_view(sample, *reason, count) });
            }
        }
        views
    }

    /// The counts of each VIP, then the counts of packets that were counted for no VIP.
    pub fn reasons_by_service(&self) -> Vec<ReasonView> {
        let Some(sample) = &self.sampled.now else { return Vec::new() };
        let mut entries: Vec<(&SocketAddr, &Service, &ServiceName)> = Vec::new();
        for part in self.published.programmed.parts() {
            entries.extend(part.services.iter().map(|(vip, entry)| (vip, entry, &part.name)));
        }
        entries.sort_unstable_by_key(|(vip, ..)| *vip);
        let of_vips = entries.into_iter().flat_map(|(vip, entry, name)| {
            let seen = Reason::ALL.iter().filter(|reason| sample.refusal(entry.stats, **reason) > 0);
            seen.map(move |reason| {
                let count = |sample: &Sample| sample.refusal(entry.stats, *reason);
                let view = self.reason_view(sample, *reason, count);
                ReasonView { service: Some(name.to_string()), vip: Some(*vip), ..view }
            })
        });
        let of_none = Reason::ALL.iter().map(|reason| {
            let count = |sample: &Sample| sample.total(*reason as u32).saturating_sub(sample.refused_in_all(*reason));
            self.reason_view(sample, *reason, count)
        });
        of_vips.chain(of_none).collect()
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
            packets_per_second: sample.per_second(self.sampled.before.as_deref(), count),
        }
    }
}
