//! A [`Snapshot`] as metric families.

mod backends;
pub(super) mod series;
mod services;

use std::{collections::BTreeMap, fmt};

use lb_common::verdict::Kind;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use self::series::{Labels, counters, gauges};
use crate::{
    clock::unix_now,
    view::types::{Snapshot, SourceView},
};

#[derive(Debug)]
pub(super) struct SnapshotCollector(pub(super) Snapshot);

impl Collector for SnapshotCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self(snapshot) = self;
        agent(&mut encoder, snapshot)?;
        verdicts(&mut encoder, snapshot)?;
        tables(&mut encoder, snapshot)?;
        services::encode(&mut encoder, snapshot)?;
        backends::encode(&mut encoder, snapshot)
    }
}

fn alone<V>(value: V) -> [(Labels, V); 1] {
    [(Vec::new(), value)]
}

fn agent(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let status = &snapshot.status;
    let version = vec![("version", status.version.clone())];
    gauges(encoder, "build_info", "The version of the agent; always 1.", [(version, 1_u32)])?;
    let reload = "1 if the configuration file, as it is now, was taken over; 0 if it was refused.";
    gauges(encoder, "config_last_reload_successful", reload, alone(u32::from(status.config.last_reload_ok)))?;
    if status.config.loaded_at > 0.0 {
        let age = (unix_now() - status.config.loaded_at).max(0.0);
        gauges(encoder, "state_age_seconds", "How long ago the running configuration was taken over.", alone(age))?;
    }
    let sources = || status.sources.iter();
    let of_source = |source: &SourceView| vec![("source", source.name.clone())];
    let synced = "1 if the source (other than the file) has listed all its services since the agent was started.";
    let samples = sources().map(|source| (of_source(source), u32::from(source.synced)));
    gauges(encoder, "source_synced", synced, samples)?;
    let failing = "1 if the source (other than the file) can't be reached; its last services stay in force.";
    let samples = sources().map(|source| (of_source(source), u32::from(source.error.is_some())));
    gauges(encoder, "source_failing", failing, samples)?;
    let refused = "1 for each service that can't be served as its source says, with the reason.";
    let samples = sources().flat_map(|source| source.refused.iter().map(move |one| (of_source(source), one)));
    let samples = samples.map(|(labels, one)| {
        let of_service = [("service", one.service.clone()), ("reason", one.reason.clone())];
        (labels.into_iter().chain(of_service).collect(), 1_u32)
    });
    gauges(encoder, "source_service_refused", refused, samples)?;
    let success = "When the BPF maps were last brought in sync, in seconds since 1970; 0 if never.";
    gauges(encoder, "sync_last_success_timestamp_seconds", success, alone(status.sync.last_success_at))?;
    // Currently, a sync can fail only because a map can't be read or written.
    let reason = vec![("reason", "maps".to_owned())];
    let failures = "Attempts to bring the BPF maps in sync that failed.";
    counters(encoder, "sync_errors", failures, [(reason, status.sync.errors)])
}

fn verdicts(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let actions = snapshot.interfaces.iter().flat_map(|interface| {
        let labels = |action: &String| vec![("interface", interface.name.clone()), ("action", action.clone())];
        interface.actions.iter().map(move |(action, count)| (labels(action), *count))
    });
    let help = "Packets by what became of them: pass (left to the stack), forward, reject (answered), drop.";
    counters(encoder, "xdp_actions", help, actions)?;
    let attached = snapshot.interfaces.iter().map(|interface| {
        let labels = vec![("interface", interface.name.clone()), ("mode", interface.xdp_mode.clone())];
        (labels, u32::from(interface.xdp_mode != "none"))
    });
    let help = "1 if the XDP program is attached, in this mode; 0 in mode none: the hook is lost.";
    gauges(encoder, "xdp_attached", help, attached)?;
    let help = "Hooks that were gone without the agent's doing, and attached again.";
    counters(encoder, "hooks_lost", help, alone(snapshot.status.lost_hooks))?;

    let kinds = [
        (Kind::Drop, "drops", "reason", "Packets dropped, by reason; weir get drops explains each."),
        (Kind::Pass, "passes", "reason", "Packets left to the stack, by reason."),
        (Kind::Reject, "rejects", "kind", "Packets answered by Weir (a reset, an echo reply), by reason."),
    ];
    for (kind, name, label, help) in kinds {
        let mut sums = BTreeMap::<&str, u64>::new();
        for view in snapshot.drops.iter().filter(|view| view.kind == kind.name()) {
            *sums.entry(&view.reason).or_default() += view.packets_total;
        }
        let samples = sums.into_iter().map(|(reason, count)| (vec![(label, reason.to_owned())], count));
        counters(encoder, name, help, samples)?;
    }
    Ok(())
}

fn tables(encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
    let tables = &snapshot.status.tables;
    let map = |name: &String| vec![("map", name.clone())];
    let entries = tables.iter().map(|table| (map(&table.map), table.entries));
    gauges(encoder, "map_entries", "Entries in a BPF map.", entries)?;
    let room = tables.iter().map(|table| (map(&table.map), table.max_entries));
    gauges(encoder, "map_max_entries", "Entries that a BPF map has room for.", room)?;
    let failures = tables.iter().map(|table| (map(&table.map), table.insert_failures));
    let help = "Entries that the program could not insert because the kernel refused.";
    counters(encoder, "flow_insert_failures", help, failures)?;
    let nat = &snapshot.status.nat;
    gauges(encoder, "nat_ports_used", "Flows that hold a SNAT port.", alone(nat.ports_used))?;
    gauges(encoder, "nat_ports_max", "SNAT ports for each backend, times backends.", alone(nat.ports_max))
}
