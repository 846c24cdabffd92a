//! Metric families about backends.

use std::{collections::BTreeMap, fmt};

use lb_common::flow::Family;
use prometheus_client::encoding::DescriptorEncoder;

use super::series::{Labels, counters, gauges};
use crate::{
    state::{AdminState, Health},
    view::types::{BackendView, Snapshot},
};

/// The states that result from admin state and health.
pub(super) const STATES: [&str; 6] = ["up", "down", "dead", "unknown", "draining", "disabled"];

pub(super) fn state(backend: &BackendView) -> &'static str {
    match backend.admin {
        AdminState::Disabled => AdminState::Disabled.name(),
        AdminState::Draining => AdminState::Draining.name(),
        AdminState::Active if backend.removed => AdminState::Draining.name(),
        AdminState::Active => backend.health.name(),
    }
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let backends = labelled(snapshot);
    type Total = (&'static str, &'static str, fn(&BackendView) -> u64);
    let totals: [Total; 6] = [
        ("backend_packets", "Packets forwarded to the backend.", |backend| backend.packets_total),
        ("backend_bytes", "Bytes of packets forwarded to the backend, from the IP header on.", |backend| {
            backend.bytes_total
        }),
        ("backend_connections", "Connections begun; with DSR, connection attempts forwarded.", |backend| {
            backend.connections_total
        }),
        ("backend_reply_packets", "Packets of the backend that pass through this node.", |backend| {
            backend.reply_packets_total
        }),
        ("backend_reply_bytes", "Bytes of packets of the backend that pass through this node.", |backend| {
            backend.reply_bytes_total
        }),
        ("backend_state_changes", "Changes of health, the first verdict included.", |backend| {
            backend.state_changes_total
        }),
    ];
    for (name, help, value) in totals {
        counters(encoder, name, help, backends.iter().map(|(labels, backend)| (labels.clone(), value(backend))))?;
    }
    let failures = backends.iter().flat_map(|(labels, backend)| {
        let with = |reason: &String| labels.iter().cloned().chain([("reason", reason.clone())]).collect();
        backend.check_failures.iter().map(move |(reason, count)| (with(reason), *count))
    });
    counters(encoder, "backend_check_failures", "Health probes that failed, by reason.", failures)?;

    let states = backends.iter().flat_map(|(labels, backend)| {
        let with = |state: &str| labels.iter().cloned().chain([("state", state.to_owned())]).collect();
        STATES.map(|name| (with(name), u32::from(name == state(backend))))
    });
    gauges(encoder, "backend_state", "1 for the state that results of admin state and health.", states)?;
    type Value = (&'static str, &'static str, fn(&BackendView) -> Option<f64>);
    let values: [Value; 5] = [
        ("backend_up", "1 if probes find it up, or if it gets new flows without a verdict.", |backend| {
            Some(f64::from(u8::from(is_up(backend))))
        }),
        ("backend_weight", "Its weight in the ring.", |backend| Some(f64::from(backend.weight))),
        ("backend_connections_active", "Connections open now; not known with DSR.", |backend| {
            backend.connections_active.map(|count| count as f64)
        }),
        ("backend_check_last_duration_seconds", "How long its last health probe took.", |backend| {
            backend.last_check_duration_seconds
        }),
        ("backend_last_change_timestamp_seconds", "When its health last changed, in seconds since 1970.", |backend| {
            backend.last_change_at
        }),
    ];
    for (name, help, value) in values {
        let samples = backends.iter().filter_map(|(labels, backend)| Some((labels.clone(), value(backend)?)));
        gauges(encoder, name, help, samples)?;
    }
    Ok(())
}

fn is_up(backend: &BackendView) -> bool {
    match backend.health {
        Health::Up => true,
        Health::Down | Health::Dead => false,
        Health::Unknown => backend.eligible,
    }
}

/// Every backend once: its counters cover all VIPs of its family, so the label `vip` lists all of
/// them, separated by commas.
fn labelled(snapshot: &Snapshot) -> Vec<(Labels, &BackendView)> {
    let mut fronts = BTreeMap::<_, (Vec<String>, &str, u16)>::new();
    for service in &snapshot.services {
        let key = (service.full_name(), Family::of(&service.vip));
        let (vips, ..) = fronts.entry(key).or_insert_with(|| (Vec::new(), &service.protocol, service.port));
        vips.push(service.vip.to_string());
    }
    let labels = |backend: &BackendView| {
        let key = (backend.service_name(), Family::of(&backend.address.ip()));
        let mut labels: Labels =
            vec![("service_namespace", backend.namespace.clone()), ("service_name", backend.service.clone())];
        if let Some((vips, protocol, port)) = fronts.get(&key) {
            labels.push(("vip", vips.join(",")));
            labels.push(("port", port.to_string()));
            labels.push(("protocol", (*protocol).to_owned()));
        }
        labels.push(("backend", backend.address.to_string()));
        labels
    };
    snapshot.backends.iter().map(|backend| (labels(backend), backend)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_health_and_admin_state_has_a_gauge() {
        for health in [Health::Unknown, Health::Up, Health::Down, Health::Dead] {
            assert!(STATES.contains(&health.name()), "{health:?}");
        }
        for admin in [AdminState::Draining, AdminState::Disabled] {
            assert!(STATES.contains(&admin.name()), "{admin:?}");
        }
    }
}
