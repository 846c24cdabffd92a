//! The agent's metrics as OpenMetrics text: the contents of a [`Snapshot`], measurements that it
//! doesn't contain, and the process itself. The names and labels are a contract with users'
//! dashboards and alerts.

mod collect;
mod measured;
mod process;

use std::collections::BTreeMap;

use prometheus_client::{encoding::text, registry::Registry};

pub use self::measured::{CheckDurations, MapUpdateErrors, SyncDurations};
use crate::{state::ServiceName, view::types::Snapshot};

/// The content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters and measurements that are not in the snapshot; all clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    checks: CheckDurations,
    syncs: SyncDurations,
    map_errors: MapUpdateErrors,
}

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    /// Records the durations of probes.
    pub fn check_durations(&self) -> CheckDurations {
        self.checks.clone()
    }

    /// Records the durations of reconciliations.
    pub fn sync_durations(&self) -> SyncDurations {
        self.syncs.clone()
    }

    /// Counts the map writes that the kernel refused.
    pub fn map_update_errors(&self) -> MapUpdateErrors {
        self.map_errors.clone()
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self, snapshot: &Snapshot) -> String {
        let ports: BTreeMap<ServiceName, u16> =
            snapshot.services.iter().map(|view| (view.full_name(), view.port)).collect();
        let mut registry = Registry::with_prefix("weir");
        registry.register_collector(Box::new(collect::SnapshotCollector(snapshot.clone())));
        registry.register_collector(Box::new(self.checks.of(ports)));
        registry.register_collector(Box::new(self.syncs.clone()));
        registry.register_collector(Box::new(self.map_errors.clone()));
        // Metric names that all exporters share have no prefix.
        let mut shared = Registry::default();
        shared.register_collector(Box::new(process::ProcessCollector));
        let mut text = String::new();
        let encoded = text::encode_registry(&mut text, &registry).and_then(|()| text::encode(&mut text, &shared));
        if encoded.is_err() {
            // Writing to a string does not fail, but encoding an unsupported value does; the error
            // has no details.
            tracing::error!(target: "weir::metrics", "the metrics could not be encoded: what is served is cut short");
        }
        text
    }
}

#[cfg(test)]
mod tests;
