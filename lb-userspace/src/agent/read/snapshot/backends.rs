//! The views of the backends: first the declared ones, then the removed ones that still drain.

use std::collections::HashMap;

use lb_common::{
    backend::{Backend, WAY_NAT},
    flow::Family,
};

use super::moment::Moment;
use crate::{
    agent::published::Published,
    clock::{boottime_ns, unix},
    dataplane::{
        plan::{Leaving, WantedBackend},
        programmed::Part,
    },
    health::HealthView,
    model::{self, Service},
    overrides::{Effective, effective},
    state::{AdminState, BackendId, Health, Origin, ServiceName},
    view::types::BackendView,
};

impl Moment {
    /// The views of the backends of the services whose names `is_asked` accepts.
    pub fn backend_views(&self, is_asked: impl Fn(&ServiceName) -> bool) -> Vec<BackendView> {
        let Published { desired, wanted, programmed, .. } = &*self.published;
        let mut views = Vec::new();
        let services = desired.config.services.iter().zip(&wanted.services);
        for (service, wanted) in services.filter(|(service, _)| is_asked(&service.name)) {
            let part = programmed.named(&service.name);
            for (backend, wanted) in service.backends.iter().zip(&wanted.backends) {
                let id = BackendId { service: service.name.clone(), address: backend.address };
                let set = effective(backend, desired.overrides.of(&id));
                let index = part.and_then(|part| part.indexes.get(&backend.address).copied());
                let entry = index.and_then(|index| Some((index, part?.backends.get(&index)?)));
                let view = self.view(&id, entry);
                let ring = part.and_then(|part| self.rings.get(&(part.id, Family::of(&backend.address.ip()))));
                let share = index.and_then(|index| ring?.shares.get(&index).copied());
                let probed = self.health.get(&id).cloned().unwrap_or_default();
                views.push(BackendView {
                    zone: backend.zone.clone(),
                    weight: set.weight,
                    weight_from: set.weight_from,
                    admin: set.admin,
                    admin_from: set.admin_from,
                    health: wanted.health,
                    eligible: wanted.is_eligible,
                    drain_remaining_seconds: entry
                        .filter(|_| set.admin == AdminState::Draining)
                        .map(|(_, entry)| remaining(entry)),
                    slots_share: share.unwrap_or(0.0),
                    ..with_health(view, service, backend, wanted, &set, &probed)
                });
            }
        }
        let parts = programmed.parts().filter(|part| is_asked(&part.name));
        let leaving: Vec<(&Part, &Leaving)> =
            parts.flat_map(|part| part.leaving.iter().map(move |one| (&**part, one))).collect();
        if leaving.is_empty() {
            return views;
        }
        let mut places: HashMap<BackendId, usize> =
            views.iter().enumerate().map(|(place, view)| (view.id(), place)).collect();
        for (part, one) in leaving {
            let left = self.leaving_view(part, one);
            // A leaving backend may have the name of a declared one: because the mode changed, or
            // because a new service has the name of a removed one. Both then share one line.
            let place = *places.entry(left.id()).or_insert(views.len());
            match views.get_mut(place) {
                Some(view) => {
                    view.connections_active = match (view.connections_active, left.connections_active) {
                        (Some(here), Some(there)) => Some(here + there),
                        (here, there) => here.or(there),
                    };
                    view.nat_ports_used += left.nat_ports_used;
                    view.nat_ports_max += left.nat_ports_max;
                }
                None => views.push(left),
            }
        }
        views
    }

    fn leaving_view(&self, part: &Part, one: &Leaving) -> BackendView {
        let id = BackendId { service: part.name.clone(), address: one.address };
        let entry = part.backends.get(&one.index);
        let view = self.view(&id, entry.map(|entry| (one.index, entry)));
        BackendView {
            weight: 0,
            admin: AdminState::Draining,
            health: entry.map_or(Health::Unknown, |entry| super::health(entry.health)),
            removed: true,
            drain_remaining_seconds: Some(one.until_ns.saturating_sub(boottime_ns()) as f64 / 1e9),
            reason: "it left the configuration; its old connections go on".to_owned(),
            ..view
        }
    }

    /// The view of a backend with its counters; the caller fills in the rest.
    fn view(&self, id: &BackendId, entry: Option<(u32, &Backend)>) -> BackendView {
        let (census, sample) = (&self.census, self.sampled.now.as_deref());
        let index = entry.map(|(index, _)| index);
        let stats = index.and_then(|index| Some(sample?.backend(index))).unwrap_or_default();
        let rate = index.map(|index| self.rate(|sample| sample.backend(index).connections));
        let flows = index.and_then(|index| census.census.flows.get(&index).copied()).unwrap_or_default();
        let is_counted = census.began_ns > 0 && entry.is_some_and(|(_, entry)| entry.way == WAY_NAT);
        let since = entry.map_or(0, |(_, entry)| entry.health_since_unix_ns);
        let snat_count = entry.map_or(0, |(_, entry)| u64::from(entry.snat_count));
        let pool = self.published.programmed.common.settings.map_or(0, |settings| u64::from(settings.ports.size));
        BackendView {
            namespace: id.service.namespace().to_owned(),
            service: id.service.name().to_owned(),
            port_name: id.service.port().to_owned(),
            address: id.address,
            node: None,
            zone: None,
            weight: 0,
            weight_from: Origin::File,
            admin: AdminState::Active,
            admin_from: Origin::File,
            health: Health::Unknown,
            eligible: false,
            removed: false,
            drain_remaining_seconds: None,
            connections_active: is_counted.then_some(flows.established),
            connections_total: stats.connections,
            connections_per_second: rate.unwrap_or(0.0),
            packets_total: stats.packets,
            bytes_total: stats.bytes,
            reply_packets_total: stats.reply_packets,
            reply_bytes_total: stats.reply_bytes,
            last_change_at: (since > 0).then_some(since as f64 / 1e9),
            last_check_at: None,
            last_check_duration_seconds: None,
            reason: String::new(),
            check_failures: Vec::new(),
            state_changes_total: 0,
            slots_share: 0.0,
            nat_ports_used: if snat_count > 0 { flows.all() } else { 0 },
            nat_ports_max: pool * snat_count,
        }
    }
}

fn with_health(
    view: BackendView,
    service: &Service,
    backend: &model::Backend,
    wanted: &WantedBackend,
    set: &Effective,
    probed: &HealthView,
) -> BackendView {
    BackendView {
        last_check_at: probed.last_check.map(unix),
        last_check_duration_seconds: probed.last_duration.map(|duration| duration.as_secs_f64()),
        reason: reason(service, backend, wanted, set, probed),
        check_failures: probed.failures.iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect(),
        state_changes_total: probed.changes,
        ..view
    }
}

/// The result of the last probe, or why the backend gets no flows.
fn reason(
    service: &Service,
    backend: &model::Backend,
    wanted: &WantedBackend,
    set: &Effective,
    probed: &HealthView,
) -> String {
    let by = match set.admin_from {
        Origin::File => "by the file",
        Origin::Cli => "by the CLI",
    };
    match set.admin {
        AdminState::Disabled => return format!("disabled {by}"),
        AdminState::Draining => return format!("drained {by}"),
        AdminState::Active => {}
    }
    if set.weight == 0 {
        return "its weight is 0".to_owned();
    }
    if service.vips.iter().all(|vip| vip.is_ipv4() != backend.address.is_ipv4()) {
        return "the service has no VIP of its family".to_owned();
    }
    match &service.health {
        None => "no probes: taken for up".to_owned(),
        Some(_) if probed.reason.is_empty() && wanted.health == Health::Unknown => "not probed yet".to_owned(),
        Some(_) if probed.reason.is_empty() => "as it was before the agent was started".to_owned(),
        Some(_) => probed.reason.clone().into_owned(),
    }
}

fn remaining(entry: &Backend) -> f64 {
    let until = entry.draining_since_ns.saturating_add(u64::from(entry.drain_timeout_ms) * 1_000_000);
    until.saturating_sub(boottime_ns()) as f64 / 1e9
}
