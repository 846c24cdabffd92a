//! Builds a snapshot of the complete state at one moment.

mod backends;
mod moment;
mod reasons;
mod sources;
mod status;

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    flow::Family,
    verdict::{Kind, Reason},
};

pub use self::{moment::Moment, status::shortages};
use crate::{
    agent::published::Published,
    dataplane::hooks::Hook,
    model::{Affinity, Mode, Service},
    state::Health,
    view::types::{ExceptionsView, InterfaceView, ServiceView, Snapshot},
};

impl Moment {
    /// The snapshot; `started_at` is when the agent was started, in seconds since 1970.
    pub fn snapshot(&self, started_at: f64) -> Snapshot {
        let services = self.service_views();
        let backends = self.backend_views(|_| true);
        let interfaces = self.interface_views();
        let status = self.status(&services, &backends, &interfaces, started_at);
        let drops = self.reasons_by_interface();
        let drops_by_service = self.reasons_by_service();
        Snapshot { status, services, backends, drops, drops_by_service, interfaces }
    }

    fn service_views(&self) -> Vec<ServiceView> {
        let Published { desired, wanted, programmed, seen_since, .. } = &*self.published;
        let (census, settled) = (&self.census, &self.settled);
        let sample = self.sampled.now.as_deref();
        let mut views = Vec::new();
        for (service, wanted) in desired.config.services.iter().zip(&wanted.services) {
            let part = programmed.named(&service.name);
            for vip in &service.vips {
                let at = SocketAddr::new(*vip, service.port);
                let entry = part.and_then(|part| part.services.get(&at));
                let stats = entry.and_then(|entry| Some(sample?.service(entry.stats))).unwrap_or_default();
                let rate = entry.map(|entry| self.rate(|sample| sample.service(entry.stats).connections));
                let of_family = wanted.backends.iter().filter(|one| Family::of(&one.address.ip()) == Family::of(vip));
                let ring =
                    part.and_then(|part| self.rings.get(&(part.id, Family::of(vip)))).cloned().unwrap_or_default();
                let open = entry.map(|entry| census.census.vips.get(&entry.stats).map_or(0, |flows| flows.established));
                views.push(ServiceView {
                    namespace: service.name.namespace().to_owned(),
                    name: service.name.name().to_owned(),
                    port_name: service.name.port().to_owned(),
                    vip: *vip,
                    port: service.port,
                    protocol: "tcp".to_owned(),
                    mode: service.mode.name().to_owned(),
                    policy: policy(service).to_owned(),
                    backends_eligible: of_family.clone().filter(|one| one.is_eligible).count() as u32,
                    backends_all: of_family.count() as u32,
                    connections_active: open.filter(|_| service.mode == Mode::Nat && census.began_ns > 0),
                    connections_total: stats.connections,
                    connections_per_second: rate.unwrap_or(0.0),
                    packets_total: stats.packets,
                    bytes_total: stats.bytes,
                    reply_packets_total: stats.reply_packets,
                    reply_bytes_total: stats.reply_bytes,
                    refused_total: stats.refused,
                    age_seconds: seen_since.get(&service.name).map_or(0.0, |since| since.elapsed().as_secs_f64()),
                    ring_size: service.ring_size,
                    slots_in_transition: ring.in_transition,
                    slots_tracked: ring.tracked,
                    exceptions: entry.filter(|_| service.mode.is_dsr() && settled.began_ns > 0).map(|entry| {
                        let counts = settled.census.vips.get(&entry.stats).copied().unwrap_or_default();
                        ExceptionsView {
                            half_open: counts.half_open,
                            established: counts.established,
                            seen: counts.seen,
                        }
                    }),
                    ring_digest: ring.digest.clone(),
                });
            }
        }
        views
    }

    fn interface_views(&self) -> Vec<InterfaceView> {
        let (node, sample) = (&self.node, self.sampled.now.as_deref());
        let view = |hook: &Hook| {
            let mut actions: BTreeMap<Kind, u64> =
                [Kind::Pass, Kind::Forward, Kind::Reject, Kind::Drop].map(|kind| (kind, 0)).into();
            for reason in Reason::ALL {
                let count = sample.map_or(0, |sample| sample.verdict(hook.ifindex, *reason));
                *actions.entry(reason.kind()).or_default() += count;
            }
            InterfaceView {
                name: hook.name.clone(),
                ifindex: hook.ifindex,
                xdp_mode: hook.xdp.map_or("none", |mode| mode.name()).to_owned(),
                tc: hook.tc.name().to_owned(),
                mtu: node.interfaces.get(&hook.ifindex).map_or(0, |interface| interface.mtu),
                actions: actions.into_iter().map(|(kind, count)| (kind.name().to_owned(), count)).collect(),
                problem: hook.problem.clone(),
            }
        };
        node.hooks.iter().map(view).collect()
    }
}

const fn policy(service: &Service) -> &'static str {
    match service.affinity {
        Affinity::None => "maglev",
        Affinity::ClientIp => "maglev client-ip",
    }
}

/// Health from an entry of `BACKENDS`.
const fn health(number: u8) -> Health {
    match number {
        lb_common::backend::HEALTH_UP => Health::Up,
        lb_common::backend::HEALTH_DOWN => Health::Down,
        lb_common::backend::HEALTH_DEAD => Health::Dead,
        _ => Health::Unknown,
    }
}
