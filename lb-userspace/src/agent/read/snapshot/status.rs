//! The status document: whether all is well, and if not, why.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    flow::Family,
    limits::map,
    verdict::{EVENT_ESTABLISHED_FULL, EVENT_EXCEPTIONS_FULL, EVENT_HALF_OPEN_FULL, EVENT_SEEN_FULL, Reason},
};

use super::{moment::Moment, sources};
use crate::{
    agent::{flows::Counted, published::Published, settle::Settled},
    dataplane::{stats::Sample, tables::TableFill},
    state::{AdminState, Health},
    view::types::{BackendTotals, BackendView, InterfaceView, NatStatus, Overall, ServiceView, Status, TableView},
};

impl Moment {
    /// The status, without `state_since`, which the caller fills in.
    pub fn status(
        &self,
        services: &[ServiceView],
        backends: &[BackendView],
        interfaces: &[InterfaceView],
        started_at: f64,
    ) -> Status {
        let sample = self.sampled.now.as_deref();
        let published = &self.published;
        let tables = self.tables(sample);
        let nat = self.nat(backends, sample);
        let (state, mut reasons) = self.judge(services, backends, interfaces);
        let tight = shortages(&self.census, &self.settled);
        let state = if tight.is_empty() { state } else { state.max(Overall::Degraded) };
        reasons.extend(tight);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state,
            reasons,
            waiting_for: if published.is_starting {
                "the first verdict on every backend".to_owned()
            } else {
                String::new()
            },
            state_since: 0.0,
            started_at,
            config: published.config.clone(),
            backends: totals(backends),
            tables,
            nat,
            sync: published.sync.clone(),
            lost_hooks: self.node.lost_hooks,
            sources: sources::views(&self.published),
            findings: self.findings.clone(),
        }
    }

    fn judge(
        &self,
        services: &[ServiceView],
        backends: &[BackendView],
        interfaces: &[InterfaceView],
    ) -> (Overall, Vec<String>) {
        let Published { config, sync, .. } = &*self.published;
        let node = &self.node;
        let mut down = Vec::new();
        let mut degraded = Vec::new();
        if interfaces.iter().all(|interface| interface.xdp_mode == "none") {
            down.push("the data path is attached to no interface".to_owned());
        }
        for interface in interfaces.iter().filter(|interface| !interface.problem.is_empty()) {
            degraded.push(format!("interface {}: {}", interface.name, interface.problem));
        }
        degraded.extend(node.unmet.iter().map(|pattern| format!("no interface fits {pattern}")));
        degraded.extend(node.problems.iter().cloned());
        let without_room = self.settled.without_room();
        if without_room > 0 {
            degraded.push(format!(
                "{without_room} slots wait to settle: ESTABLISHED has no room for their connections \
                (flowTables.established)"
            ));
        }
        for service in services.iter().filter(|service| service.backends_all > 0 && service.backends_eligible == 0) {
            let at = std::net::SocketAddr::new(service.vip, service.port);
            down.push(format!(
                "service {} has no eligible backend for {at}: its connections are reset",
                service.full_name()
            ));
        }
        for backend in backends.iter().filter(|backend| !backend.removed && backend.admin == AdminState::Active) {
            let name = format!("backend {}", backend.id());
            match backend.health {
                Health::Down | Health::Dead => {
                    degraded.push(format!("{name} is {}: {}", backend.health.name(), backend.reason));
                }
                Health::Unknown if !backend.eligible && backend.weight > 0 => {
                    degraded.push(format!("{name} waits for its first verdict"));
                }
                _ => {}
            }
        }
        if !config.last_reload_ok {
            degraded.push(format!("the configuration file is refused: {}", config.errors.join("; ")));
        }
        degraded.extend(sources::reasons(&self.published));
        if let Some(error) = &sync.last_error {
            degraded.push(format!("the maps are not in sync: {error}"));
        }
        let state = match (down.is_empty(), degraded.is_empty()) {
            (false, _) => Overall::Down,
            (_, false) => Overall::Degraded,
            _ => Overall::Ok,
        };
        down.append(&mut degraded);
        (state, down)
    }

    fn tables(&self, sample: Option<&Sample>) -> Vec<TableView> {
        let (programmed, limits) = (&self.published.programmed, &self.published.desired.limits);
        let view = |map: &str, entries: u64, max_entries: u64| TableView {
            map: map.to_owned(),
            entries,
            max_entries,
            insert_failures: 0,
        };
        let services = || programmed.parts().flat_map(|part| &part.services);
        let of_family = |family: Family| services().filter(|(vip, _)| Family::of(&vip.ip()) == family).count() as u64;
        let known = &programmed.common.addresses;
        let addresses = |family: Family| known.keys().filter(|ip| Family::of(ip) == family).count() as u64;
        let ranges: BTreeSet<(u32, u32)> = services().map(|(_, entry)| (entry.ring_offset, entry.ring_len)).collect();
        let slots: u64 = ranges.into_iter().map(|(_, len)| u64::from(len)).sum();
        let backends: usize = programmed.parts().map(|part| part.backends.len()).sum();
        let mut views = vec![
            view(map::SERVICES_V4, of_family(Family::V4), u64::from(limits.services)),
            view(map::SERVICES_V6, of_family(Family::V6), u64::from(limits.services)),
            view(map::ADDRESSES_V4, addresses(Family::V4), u64::from(limits.addresses)),
            view(map::ADDRESSES_V6, addresses(Family::V6), u64::from(limits.addresses)),
            view(map::RINGS, slots, u64::from(limits.ring_slots)),
            view(map::BACKENDS, backends as u64, u64::from(limits.backends)),
        ];
        let failures: BTreeMap<&str, u64> = sample
            .map(|sample| {
                // The program counts both families together; each count is shown for the IPv4
                // table.
                let full = sample.total(EVENT_ESTABLISHED_FULL);
                let refused = sample.total(Reason::FlowTable as u32);
                BTreeMap::from([
                    (map::NAT_ESTABLISHED_V4, full),
                    (map::NAT_HALF_OPEN_V4, refused),
                    (map::ESTABLISHED_V4, sample.total(EVENT_EXCEPTIONS_FULL)),
                    (map::HALF_OPEN_V4, sample.total(EVENT_HALF_OPEN_FULL)),
                    (map::SEEN_V4, sample.total(EVENT_SEEN_FULL)),
                ])
            })
            .unwrap_or_default();
        let (census, settled) = (&self.census.census, &self.settled.census);
        views.extend(census.tables.iter().chain(&settled.tables).map(|fill| TableView {
            insert_failures: failures.get(fill.map).copied().unwrap_or(0),
            ..view(fill.map, fill.entries, fill.max_entries)
        }));
        views
    }

    fn nat(&self, backends: &[BackendView], sample: Option<&Sample>) -> NatStatus {
        let share = |backend: &BackendView| backend.nat_ports_used as f64 / backend.nat_ports_max as f64;
        let with_ports = backends.iter().filter(|backend| backend.nat_ports_max > 0);
        let fullest = with_ports
            .clone()
            .max_by(|a, b| share(a).total_cmp(&share(b)))
            .map(|backend| (backend.id().to_string(), share(backend)));
        NatStatus {
            addresses: self.published.programmed.common.snat_addresses.iter().copied().flatten().collect(),
            ports_used: with_ports.clone().map(|backend| backend.nat_ports_used).sum(),
            ports_max: with_ports.map(|backend| backend.nat_ports_max).sum(),
            fullest,
            exhausted: sample.map_or(0, |sample| sample.total(Reason::PortsExhausted as u32)),
        }
    }
}

/// The share of entries in use above which a table is reported.
const TIGHT: f64 = 0.9;

/// One sentence for each table of established flows that is nearly full. Other tables are not
/// reported: tables of half-open flows evict their oldest entries, and a configuration that would
/// overfill a map is refused.
pub fn shortages(census: &Counted, settled: &Settled) -> Vec<String> {
    nearly_full(census.census.tables.iter().chain(&settled.census.tables))
}

fn nearly_full<'a>(tables: impl Iterator<Item = &'a TableFill>) -> Vec<String> {
    let of_flows = [map::NAT_ESTABLISHED_V4, map::NAT_ESTABLISHED_V6, map::ESTABLISHED_V4, map::ESTABLISHED_V6];
    tables
        .filter(|table| of_flows.contains(&table.map))
        .filter(|table| table.entries as f64 > TIGHT * table.max_entries as f64)
        .map(|table| format!("table {} is nearly full: {} of {} entries", table.map, table.entries, table.max_entries))
        .collect()
}

fn totals(backends: &[BackendView]) -> BackendTotals {
    let count = |fits: &dyn Fn(&BackendView) -> bool| backends.iter().filter(|backend| fits(backend)).count() as u32;
    let active = |backend: &BackendView| backend.admin == AdminState::Active;
    BackendTotals {
        all: backends.len() as u32,
        up: count(&|backend| active(backend) && (backend.health == Health::Up || backend.eligible)),
        down: count(&|backend| active(backend) && backend.health.is_down()),
        unknown: count(&|backend| active(backend) && backend.health == Health::Unknown && !backend.eligible),
        draining: count(&|backend| backend.admin == AdminState::Draining),
        disabled: count(&|backend| backend.admin == AdminState::Disabled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_of_established_flows_is_said_and_one_that_makes_room_may_be_full() {
        let table = |map, entries| TableFill { map, entries, max_entries: 100 };
        let tables = [table(map::NAT_HALF_OPEN_V4, 100), table(map::NAT_ESTABLISHED_V6, 91), table(map::RINGS, 100)];
        assert_eq!(nearly_full(tables.iter()), ["table NAT_ESTABLISHED_V6 is nearly full: 91 of 100 entries"]);
        assert_eq!(nearly_full([table(map::NAT_ESTABLISHED_V4, 90)].iter()), Vec::<String>::new());
    }
}
