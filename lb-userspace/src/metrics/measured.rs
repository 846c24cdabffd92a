//! Metrics that are not in the snapshot: durations and refused writes, recorded where they occur.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, histogram::Histogram},
};

use super::collect::series::{Labels, counters};
use crate::state::ServiceName;

/// Buckets from below a millisecond up to typical probe time-outs.
const CHECK_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const SYNC_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How long probes took, by service: histograms for each backend would be too many series.
#[derive(Clone, Debug, Default)]
pub struct CheckDurations(Arc<Mutex<BTreeMap<ServiceName, Arc<Histogram>>>>);

impl CheckDurations {
    /// Returns a function that records durations of one service's probes, without looking up the
    /// service each time.
    pub fn of_service(&self, service: &ServiceName) -> Box<dyn Fn(Duration) + Send + Sync> {
        let mut services = lock(&self.0);
        let histogram = services.entry(service.clone()).or_insert_with(|| Histogram::new(CHECK_BUCKETS).into());
        let histogram = histogram.clone();
        Box::new(move |duration| histogram.observe(duration.as_secs_f64()))
    }

    /// Collects the durations of the services in `ports`, which has their port numbers. Forgets
    /// other services, unless a function that records their durations is still in use.
    pub(super) fn of(&self, ports: BTreeMap<ServiceName, u16>) -> impl Collector + use<> {
        lock(&self.0).retain(|service, kept| ports.contains_key(service) || Arc::strong_count(kept) > 1);
        OfServices { durations: self.clone(), ports }
    }
}

#[derive(Debug)]
struct OfServices {
    durations: CheckDurations,
    ports: BTreeMap<ServiceName, u16>,
}

impl Collector for OfServices {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let name = "service_check_duration_seconds";
        let help = "How long health probes of the service's backends took.";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (service, histogram) in lock(&self.durations.0).iter() {
            let Some(port) = self.ports.get(service) else { continue };
            let labels: Labels = vec![
                ("service_namespace", service.namespace().to_owned()),
                ("service_name", service.name().to_owned()),
                ("port", port.to_string()),
            ];
            histogram.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// How long it took to bring the maps to the desired state.
#[derive(Clone, Debug)]
pub struct SyncDurations(Histogram);

impl SyncDurations {
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl Default for SyncDurations {
    fn default() -> Self {
        Self(Histogram::new(SYNC_BUCKETS))
    }
}

impl Collector for SyncDurations {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "How long it took to bring the BPF maps in sync with the desired state.";
        self.0.encode(encoder.encode_descriptor("sync_duration_seconds", help, None, MetricType::Histogram)?)
    }
}

/// Writes to BPF maps that the kernel refused.
#[derive(Clone, Debug, Default)]
pub struct MapUpdateErrors(Arc<Mutex<BTreeMap<(String, String), u64>>>);

impl MapUpdateErrors {
    /// Counts one refused write; `errno` is the name of the error, as in `E2BIG`.
    pub fn count(&self, map: &str, errno: &str) {
        *lock(&self.0).entry((map.to_owned(), errno.to_owned())).or_default() += 1;
    }
}

impl Collector for MapUpdateErrors {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let errors = lock(&self.0).clone();
        let samples = errors.into_iter().map(|((map, errno), count)| (vec![("map", map), ("errno", errno)], count));
        counters(&mut encoder, "map_update_errors", "Writes to a BPF map that the kernel refused.", samples)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
