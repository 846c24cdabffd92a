//! The counters, summed over CPUs, and their growth between two samples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Instant,
};

use aya::maps::{IterableMap as _, MapData, PerCpuArray, PerCpuHashMap};
use lb_common::{
    limits::map,
    service::{Refusal, Stats},
    verdict::{EVENTS, Reason, verdict_index},
};

use super::{
    maps::{self, MapsError, unread},
    raw,
};

/// If this many entries or more are wanted, the whole map is read in batches, and not entry by
/// entry.
const MANY: usize = 256;

/// Has its own handles, so that counters can be read independently of the owner of the maps.
pub struct Counters {
    services: PerCpuArray<MapData, Stats>,
    backends: PerCpuArray<MapData, Stats>,
    verdicts: PerCpuArray<MapData, u64>,
    refusals: PerCpuHashMap<MapData, Refusal, u64>,
    cpus: usize,
}

/// The counters at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    pub at: Instant,
    /// By index in `SERVICE_STATS`.
    pub services: BTreeMap<u32, Stats>,
    /// By index in `BACKEND_STATS`.
    pub backends: BTreeMap<u32, Stats>,
    /// By interface index and position (a `Reason` as a number, or an `EVENT_*`).
    pub verdicts: BTreeMap<(u32, u32), u64>,
    /// Packets for a known VIP that were not forwarded, by VIP and reason.
    pub refusals: BTreeMap<Refusal, u64>,
}

impl Counters {
    /// Opens the maps that [`crate::dataplane::data_path::DataPath::open`] has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| MapsError::Open { path: path.into(), source: source.into() })?;
        Ok(Self {
            refusals: maps::open(pin_dir, map::REFUSALS)?,
            cpus,
            services: maps::open(pin_dir, map::SERVICE_STATS)?,
            backends: maps::open(pin_dir, map::BACKEND_STATS)?,
            verdicts: maps::open(pin_dir, map::VERDICTS)?,
        })
    }

    /// Reads the counters of these services (their `stats`), backends and interfaces.
    pub fn sample(
        &self,
        services: &BTreeSet<u32>,
        backends: &BTreeSet<u32>,
        interfaces: &BTreeSet<u32>,
    ) -> Result<Sample, MapsError> {
        let read = |table: &PerCpuArray<MapData, Stats>, name, indexes: &BTreeSet<u32>| {
            if indexes.len() < MANY {
                let one = |index: &u32| Ok((*index, sum(&table.get(index, 0).map_err(unread(name))?)));
                return indexes.iter().map(one).collect::<Result<BTreeMap<u32, Stats>, MapsError>>();
            }
            let mut found = BTreeMap::new();
            raw::scan(table.map(), self.cpus, |index: &u32, values: &[Stats]| {
                if indexes.contains(index) {
                    found.insert(*index, sum(values));
                }
            })
            .map_err(unread(name))?;
            Ok(found)
        };
        let mut verdicts = BTreeMap::new();
        for ifindex in interfaces {
            let places = Reason::ALL.iter().map(|reason| *reason as u32).chain(EVENTS);
            for place in places {
                let values = self.verdicts.get(&verdict_index(*ifindex, place), 0).map_err(unread(map::VERDICTS))?;
                verdicts.insert((*ifindex, place), values.iter().sum());
            }
        }
        let mut refusals = BTreeMap::new();
        raw::scan(self.refusals.map(), self.cpus, |key: &Refusal, counts: &[u64]| {
            refusals.insert(*key, counts.iter().sum());
        })
        .map_err(unread(map::REFUSALS))?;
        Ok(Sample {
            at: Instant::now(),
            refusals,
            services: read(&self.services, map::SERVICE_STATS, services)?,
            backends: read(&self.backends, map::BACKEND_STATS, backends)?,
            verdicts,
        })
    }
}

impl Sample {
    pub fn service(&self, index: u32) -> Stats {
        self.services.get(&index).copied().unwrap_or_default()
    }

    pub fn backend(&self, index: u32) -> Stats {
        self.backends.get(&index).copied().unwrap_or_default()
    }

    pub fn verdict(&self, ifindex: u32, reason: Reason) -> u64 {
        self.verdicts.get(&(ifindex, reason as u32)).copied().unwrap_or(0)
    }

    /// How many packets to a VIP (given by its `stats`) were not forwarded for this reason.
    pub fn refusal(&self, stats: u32, reason: Reason) -> u64 {
        self.refusals.get(&Refusal { stats, reason: reason as u32 }).copied().unwrap_or(0)
    }

    /// How many packets to all VIPs together were not forwarded for this reason.
    pub fn refused_in_all(&self, reason: Reason) -> u64 {
        let of_reason = self.refusals.iter().filter(|(key, _)| key.reason == reason as u32);
        of_reason.map(|(_, count)| count).sum()
    }

    /// The total of an `EVENT_*`, or of a reason as a number, over all interfaces.
    pub fn total(&self, place: u32) -> u64 {
        self.verdicts.iter().filter(|((_, at), _)| *at == place).map(|(_, count)| count).sum()
    }

    /// The growth of `value` per second since `before`; 0 without an earlier sample, or if the
    /// counter was reset.
    pub fn per_second(&self, before: Option<&Sample>, value: impl Fn(&Sample) -> u64) -> f64 {
        let Some(before) = before else { return 0.0 };
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 { 0.0 } else { value(self).saturating_sub(value(before)) as f64 / seconds }
    }
}

fn sum(cpus: &[Stats]) -> Stats {
    cpus.iter().fold(Stats::default(), |mut sum, one| {
        sum.packets = sum.packets.wrapping_add(one.packets);
        sum.bytes = sum.bytes.wrapping_add(one.bytes);
        sum.connections = sum.connections.wrapping_add(one.connections);
        sum.reply_packets = sum.reply_packets.wrapping_add(one.reply_packets);
        sum.reply_bytes = sum.reply_bytes.wrapping_add(one.reply_bytes);
        sum.refused = sum.refused.wrapping_add(one.refused);
        sum
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(at: Instant, packets: u64) -> Sample {
        let stats = Stats { packets, ..Stats::default() };
        Sample {
            at,
            services: BTreeMap::from([(3, stats)]),
            backends: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_are_growth_over_time_and_zero_when_a_counter_begins_anew() {
        let begun = Instant::now();
        let (before, after) = (sample(begun, 100), sample(begun + Duration::from_secs(2), 150));
        let rate = |after: &Sample, before| after.per_second(before, |sample| sample.service(3).packets);
        assert_eq!(rate(&after, Some(&before)), 25.0);
        assert_eq!(rate(&after, None), 0.0);
        assert_eq!(rate(&sample(begun + Duration::from_secs(4), 7), Some(&after)), 0.0);
        assert_eq!(rate(&before, Some(&before)), 0.0);
    }
}
