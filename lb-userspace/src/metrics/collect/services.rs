//! Metric families about services: one sample for each VIP and port, or for each ring.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::flow::Family;
use prometheus_client::encoding::DescriptorEncoder;

use super::{
    backends::{STATES, state},
    series::{Labels, counters, gauges},
};
use crate::{
    model::Mode,
    view::types::{ExceptionsView, ReasonView, ServiceView, Snapshot},
};

pub(super) fn encode(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let services = &snapshot.services;
    let info = services.iter().map(|service| {
        let more = [("mode", service.mode.clone()), ("policy", service.policy.clone())];
        (labels(service).into_iter().chain(more).collect(), 1_u32)
    });
    gauges(encoder, "service_info", "How the service is balanced; always 1.", info)?;
    type Total = (&'static str, &'static str, fn(&ServiceView) -> u64);
    let totals: [Total; 6] = [
        ("service_packets", "Packets from clients, forwarded.", |service| service.packets_total),
        ("service_bytes", "Bytes of packets from clients, forwarded, from the IP header on.", |service| {
            service.bytes_total
        }),
        ("service_connections", "Connections begun; with DSR, connection attempts forwarded.", |service| {
            service.connections_total
        }),
        ("service_reply_packets", "Packets back to clients that pass through this node.", |service| {
            service.reply_packets_total
        }),
        ("service_reply_bytes", "Bytes of packets back to clients that pass through this node.", |service| {
            service.reply_bytes_total
        }),
        ("service_refused_packets", "Packets of clients that were reset or dropped.", |service| service.refused_total),
    ];
    for (name, help, value) in totals {
        counters(encoder, name, help, services.iter().map(|service| (labels(service), value(service))))?;
    }
    refusals(encoder, snapshot)?;
    let active = services.iter().filter_map(|service| Some((labels(service), service.connections_active?)));
    gauges(encoder, "service_connections_active", "Connections open now; not known with DSR.", active)?;
    let with_entries = services.iter().filter(|service| service.mode == Mode::Nat.name());
    let kind = |service: &ServiceView, kind: &str| -> Labels {
        labels(service).into_iter().chain([("kind", kind.to_owned())]).collect()
    };
    let of_nat = with_entries.filter_map(|service| Some((kind(service, "nat"), service.connections_active?)));
    let of_dsr = services.iter().filter_map(|service| Some((service, service.exceptions?))).flat_map(
        |(service, ExceptionsView { half_open, established, seen })| {
            let counts = [("half-open", half_open), ("established", established), ("seen", seen)];
            counts.map(|(name, count)| (kind(service, name), count))
        },
    );
    let exceptions = of_nat.chain(of_dsr);
    gauges(
        encoder,
        "flow_exceptions",
        "Flows with an entry of their own, by kind; in nat every flow has one.",
        exceptions,
    )?;
    gauges(encoder, "service_backends", "Backends of the VIP's family, by state.", backends_by_state(snapshot))?;
    rings(encoder, services)
}

/// Refusals by reason. Only reasons that have occurred are included, so that a service has a few
/// samples, not forty.
fn refusals(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let by_vip: BTreeMap<SocketAddr, &ServiceView> =
        snapshot.services.iter().map(|service| (SocketAddr::new(service.vip, service.port), service)).collect();
    let of_service = |reason: &ReasonView| {
        let service = by_vip.get(&reason.vip?)?;
        // The counters of the VIP and port may still be those of a removed service.
        (reason.service.as_ref() == Some(&service.full_name().to_string())).then_some(())?;
        let why = [("kind", reason.kind.clone()), ("reason", reason.reason.clone())];
        Some((labels(service).into_iter().chain(why).collect(), reason.packets_total))
    };
    let help =
        "Packets to the VIP and port that XDP did not forward (dropped, rejected, left to the stack), by reason.";
    counters(encoder, "service_refusals", help, snapshot.drops_by_service.iter().filter_map(of_service))
}

/// The labels of one VIP and port.
fn labels(service: &ServiceView) -> Labels {
    let mut labels = ring_labels(service);
    labels.push(("vip", service.vip.to_string()));
    labels
}

fn ring_labels(service: &ServiceView) -> Labels {
    vec![
        ("service_namespace", service.namespace.clone()),
        ("service_name", service.name.clone()),
        ("port", service.port.to_string()),
        ("protocol", service.protocol.clone()),
    ]
}

fn backends_by_state(snapshot: &Snapshot) -> Vec<(Labels, u32)> {
    let mut counts = BTreeMap::new();
    for backend in &snapshot.backends {
        let key = (backend.service_name(), Family::of(&backend.address.ip()), state(backend));
        *counts.entry(key).or_insert(0_u32) += 1;
    }
    let mut samples = Vec::new();
    for service in &snapshot.services {
        for state in STATES {
            let key = (service.full_name(), Family::of(&service.vip), state);
            let count = counts.get(&key).copied().unwrap_or_default();
            samples.push((labels(service).into_iter().chain([("state", state.to_owned())]).collect(), count));
        }
    }
    samples
}

/// The VIPs of one family of a service share one ring.
fn rings(encoder: &mut DescriptorEncoder, services: &[ServiceView]) -> fmt::Result {
    let mut rings = BTreeMap::new();
    for service in services {
        let family = if matches!(service.vip, IpAddr::V4(_)) { "ipv4" } else { "ipv6" };
        let labels: Labels = ring_labels(service).into_iter().chain([("family", family.to_owned())]).collect();
        rings.insert(labels, service);
    }
    let transition = rings.iter().map(|(labels, service)| (labels.clone(), service.slots_in_transition));
    gauges(encoder, "slots_in_transition", "Slots of the ring whose owner has changed and not settled.", transition)?;
    let tracked = rings.iter().map(|(labels, service)| (labels.clone(), service.slots_tracked));
    let help = "Slots of the ring that have settled, but some of whose connections are exceptions, or may be.";
    gauges(encoder, "slots_tracked", help, tracked)?;
    let digests = rings.iter().filter_map(|(labels, service)| Some((labels.clone(), halves(&service.ring_digest)?)));
    let digests: Vec<(Labels, (u32, u32))> = digests.collect();
    let declared = digests.iter().map(|(labels, (declared, _))| (labels.clone(), *declared));
    let help = "Of what the ring is made of: equal on nodes that were told the same.";
    gauges(encoder, "ring_declared_digest", help, declared)?;
    let owners = digests.iter().map(|(labels, (_, owners))| (labels.clone(), *owners));
    gauges(encoder, "ring_digest", "Of the owners of the ring's slots: equal on nodes whose rings agree.", owners)
}

/// The halves of `DECLARED-OWNERS`, as `balance::digest` makes it; each is exact as a 64-bit float.
fn halves(digest: &str) -> Option<(u32, u32)> {
    let (declared, owners) = digest.split_once('-')?;
    Some((u32::from_str_radix(declared, 16).ok()?, u32::from_str_radix(owners, 16).ok()?))
}
