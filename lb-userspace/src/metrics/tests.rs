//! The tests parse the text by hand, line by line, as the OpenMetrics specification describes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;
use crate::{
    balance::{Declared, digest::digest},
    state::{AdminState, Health, Origin, ServiceName},
    view::types::{
        BackendView, ExceptionsView, InterfaceView, NatStatus, ReasonView, RefusedView, ServiceView, SourceView,
        Status, SyncStatus, TableView,
    },
};

type Sample = (String, BTreeMap<String, String>);

/// One parsed exposition.
#[derive(Default, Debug)]
struct Text {
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    samples: BTreeMap<Sample, f64>,
}

impl Text {
    fn read(text: &str) -> Self {
        let mut read = Text::default();
        let body = text.strip_suffix("# EOF\n").expect("the text ends with EOF");
        for line in body.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(read.helps.insert(name.to_owned(), help.to_owned()).is_none(), "a second HELP: {line}");
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').unwrap();
                assert!(read.types.insert(name.to_owned(), kind.to_owned()).is_none(), "a second TYPE: {line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let sample = read_sample(sample);
                assert!(read.samples.insert(sample, value.parse().unwrap()).is_none(), "a second sample: {line}");
            }
        }
        read
    }

    /// The value of the sample with exactly these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.samples.keys().any(|(sample, _)| sample == name)
    }
}

fn read_sample(sample: &str) -> Sample {
    let Some((name, labels)) = sample.split_once('{') else { return (sample.to_owned(), BTreeMap::new()) };
    let mut rest = labels.strip_suffix('}').unwrap();
    let mut read = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().unwrap() {
                (_, '\\') => match characters.next().unwrap().1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (end, '"') => break end,
                (_, character) => value.push(character),
            }
        };
        assert!(read.insert(key.to_owned(), value).is_none(), "label {key} twice in {sample}");
        rest = after[end + 1..].trim_start_matches(',');
    }
    (name.to_owned(), read)
}

fn service(name: &str, vip: &str, mode: &str, active: Option<u64>) -> ServiceView {
    ServiceView {
        namespace: String::new(),
        name: name.to_owned(),
        port_name: String::new(),
        vip: vip.parse().unwrap(),
        port: 80,
        protocol: "TCP".to_owned(),
        mode: mode.to_owned(),
        policy: "maglev".to_owned(),
        backends_eligible: 1,
        backends_all: 2,
        connections_active: active,
        connections_total: 11,
        connections_per_second: 0.5,
        packets_total: 1 << 60,
        bytes_total: 13,
        reply_packets_total: 14,
        reply_bytes_total: 15,
        refused_total: 16,
        age_seconds: 17.0,
        ring_size: 16381,
        slots_in_transition: 18,
        slots_tracked: 19,
        exceptions: (mode == "dsr-l2").then_some(ExceptionsView { half_open: 1, established: 2, seen: 3 }),
        ring_digest: ring_digest(),
    }
}

fn backend(service: &str, address: &str, admin: AdminState, health: Health) -> BackendView {
    BackendView {
        namespace: String::new(),
        service: service.to_owned(),
        port_name: String::new(),
        address: address.parse().unwrap(),
        node: None,
        zone: None,
        weight: 3,
        weight_from: Origin::File,
        admin,
        admin_from: Origin::File,
        health,
        eligible: health != Health::Down,
        removed: false,
        drain_remaining_seconds: None,
        connections_active: Some(21),
        connections_total: 22,
        connections_per_second: 0.0,
        packets_total: 23,
        bytes_total: 24,
        reply_packets_total: 25,
        reply_bytes_total: 26,
        last_change_at: Some(27.5),
        last_check_at: Some(28.0),
        last_check_duration_seconds: Some(0.25),
        reason: "status 200".to_owned(),
        check_failures: vec![("timeout".to_owned(), 29), ("status".to_owned(), 30)],
        state_changes_total: 31,
        slots_share: 0.5,
        nat_ports_used: 0,
        nat_ports_max: 0,
    }
}

fn reason(interface: &str, kind: &str, reason: &str, packets_total: u64) -> ReasonView {
    ReasonView {
        interface: Some(interface.to_owned()),
        service: None,
        vip: None,
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        help: String::new(),
        packets_total,
        packets_per_second: 0.0,
    }
}

fn interface(name: &str, mode: &str) -> InterfaceView {
    InterfaceView {
        name: name.to_owned(),
        ifindex: 2,
        xdp_mode: mode.to_owned(),
        tc: "tcx".to_owned(),
        mtu: 1500,
        actions: vec![("pass".to_owned(), 41), ("drop".to_owned(), 42)],
        problem: String::new(),
    }
}

fn snapshot() -> Snapshot {
    let mut status = Status { version: "1.2.3".to_owned(), ..Status::default() };
    status.config.last_reload_ok = true;
    status.config.loaded_at = 1.0;
    status.lost_hooks = 55;
    status.sync = SyncStatus { last_success_at: 51.5, errors: 52, ..SyncStatus::default() };
    status.nat = NatStatus { ports_used: 53, ports_max: 54, ..NatStatus::default() };
    status.tables =
        vec![TableView { map: "NAT_ESTABLISHED_V4".to_owned(), entries: 55, max_entries: 56, insert_failures: 57 }];
    let refused = RefusedView { service: "shop/cart:http".to_owned(), reason: "no VIP".to_owned(), kept: true };
    status.sources = vec![SourceView { name: "other".to_owned(), refused: vec![refused], ..SourceView::default() }];
    Snapshot {
        status,
        services: vec![
            service("web", "192.0.2.10", "nat", Some(9)),
            service("web", "2001:db8::10", "nat", Some(10)),
            service("web", "2001:db8::11", "nat", Some(0)),
            service("direct", "192.0.2.20", "dsr-l2", None),
        ],
        backends: vec![
            backend("web", "10.2.0.11:8080", AdminState::Active, Health::Up),
            backend("web", "10.2.0.12:8080", AdminState::Draining, Health::Down),
            backend("web", "[fd02::11]:8080", AdminState::Active, Health::Down),
            BackendView {
                connections_active: None,
                last_change_at: None,
                last_check_duration_seconds: None,
                check_failures: Vec::new(),
                ..backend("direct", "10.2.0.11:80", AdminState::Active, Health::Unknown)
            },
        ],
        drops: vec![
            reason("eth0", "drop", "fragment", 3),
            reason("eth1", "drop", "fragment", 4),
            reason("eth0", "pass", "not_vip", 5),
            reason("eth0", "reject", "no_backend", 6),
            reason("eth0", "forward", "to_backend", 7),
        ],
        drops_by_service: vec![
            ReasonView {
                interface: None,
                service: Some("web".to_owned()),
                vip: Some("192.0.2.10:80".parse().unwrap()),
                ..reason("", "reject", "no_backend", 6)
            },
            reason("", "pass", "not_vip", 5),
        ],
        interfaces: vec![interface("eth0", "native"), interface("eth1", "none")],
    }
}

fn scraped() -> Text {
    let metrics = Metrics::new();
    metrics.check_durations().of_service(&ServiceName::of_file("web"))(Duration::from_millis(3));
    metrics.sync_durations().observe(Duration::from_millis(20));
    metrics.map_update_errors().count("BACKENDS", "E2BIG");
    Text::read(&metrics.encode(&snapshot()))
}

const WEB: [(&str, &str); 5] =
    [("service_namespace", ""), ("service_name", "web"), ("vip", "192.0.2.10"), ("port", "80"), ("protocol", "TCP")];

fn with<'a>(labels: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [labels, more].concat()
}

#[test]
fn every_sample_belongs_to_a_family_with_type_and_help_and_counters_end_in_total_once() {
    let text = scraped();
    assert_eq!(text.types.keys().collect::<Vec<_>>(), text.helps.keys().collect::<Vec<_>>());
    assert!(text.helps.values().all(|help| help.trim_end().len() > 10), "{:?}", text.helps);
    let mut used = BTreeSet::new();
    for (name, labels) in text.samples.keys() {
        let suffixes: &[(&str, &str)] =
            &[("_total", "counter"), ("_bucket", "histogram"), ("_sum", "histogram"), ("_count", "histogram")];
        let family = suffixes.iter().find_map(|(suffix, kind)| {
            let family = name.strip_suffix(suffix)?;
            (text.types.get(family)? == kind).then_some(family)
        });
        let family = family.unwrap_or_else(|| {
            assert_eq!(text.types.get(name).map(String::as_str), Some("gauge"), "{name} has no family");
            name
        });
        assert!(!family.ends_with("_total"), "{name}");
        assert!(family.starts_with("weir_") || family.starts_with("process_"), "{name}");
        assert!(labels.keys().all(|label| !label.contains("client")), "{name}");
        used.insert(family.to_owned());
    }
    assert_eq!(used, text.types.into_keys().collect(), "families without samples");
}

#[test]
fn service_that_is_refused_to_a_source_is_named_with_the_reason() {
    let text = scraped();
    let refused = [("source", "other"), ("service", "shop/cart:http"), ("reason", "no VIP")];
    assert_eq!(text.value("weir_source_service_refused", &refused), Some(1.0));
    assert_eq!(text.value("weir_source_synced", &[("source", "other")]), Some(0.0));
    assert_eq!(text.value("weir_source_failing", &[("source", "other")]), Some(0.0));
}

#[test]
fn services_carry_their_counters_by_vip() {
    let text = scraped();
    let expected = [
        ("weir_service_packets_total", (1_u64 << 60) as f64),
        ("weir_service_bytes_total", 13.0),
        ("weir_service_connections_total", 11.0),
        ("weir_service_connections_active", 9.0),
    ];
    for (name, value) in expected {
        assert_eq!(text.value(name, &WEB), Some(value), "{name}");
    }
    assert_eq!(text.value("weir_service_info", &with(&WEB, &[("mode", "nat"), ("policy", "maglev")])), Some(1.0));
    assert_eq!(text.value("weir_flow_exceptions", &with(&WEB, &[("kind", "nat")])), Some(9.0));
    let why = [("kind", "reject"), ("reason", "no_backend")];
    assert_eq!(text.value("weir_service_refusals_total", &with(&WEB, &why)), Some(6.0));
    assert_eq!(text.samples.keys().filter(|(name, _)| name == "weir_service_refusals_total").count(), 1);
    for (state, count) in [("up", 1.0), ("down", 0.0), ("unknown", 0.0), ("draining", 1.0), ("disabled", 0.0)] {
        assert_eq!(text.value("weir_service_backends", &with(&WEB, &[("state", state)])), Some(count), "{state}");
    }
}

#[test]
fn unknown_number_of_connections_is_left_out() {
    let text = scraped();
    for (name, labels) in text.samples.keys() {
        let of_dsr = labels.get("service_name").is_some_and(|name| name == "direct");
        assert!(!(of_dsr && name.contains("connections_active")), "{name} {labels:?}");
    }
    let direct: Vec<(&str, f64)> = text
        .samples
        .iter()
        .filter(|((name, labels), _)| name == "weir_flow_exceptions" && labels["service_name"] == "direct")
        .map(|((_, labels), value)| (labels["kind"].as_str(), *value))
        .collect();
    assert_eq!(direct, [("established", 2.0), ("half-open", 1.0), ("seen", 3.0)]);
}

#[test]
fn backends_appear_once_with_their_address_in_brackets_for_ipv6() {
    let text = scraped();
    let v4 = with(&WEB, &[("backend", "10.2.0.11:8080")]);
    let expected = [
        ("weir_backend_packets_total", 23.0),
        ("weir_backend_bytes_total", 24.0),
        ("weir_backend_connections_total", 22.0),
        ("weir_backend_connections_active", 21.0),
        ("weir_backend_up", 1.0),
        ("weir_backend_weight", 3.0),
        ("weir_backend_check_last_duration_seconds", 0.25),
        ("weir_backend_state_changes_total", 31.0),
        ("weir_backend_last_change_timestamp_seconds", 27.5),
    ];
    for (name, value) in expected {
        assert_eq!(text.value(name, &v4), Some(value), "{name}");
    }
    let failures = text.value("weir_backend_check_failures_total", &with(&v4, &[("reason", "timeout")]));
    assert_eq!(failures, Some(29.0));
    for (state, value) in [("up", 1.0), ("down", 0.0), ("draining", 0.0)] {
        assert_eq!(text.value("weir_backend_state", &with(&v4, &[("state", state)])), Some(value), "{state}");
    }
    let mut v6 = with(&WEB, &[("backend", "[fd02::11]:8080")]);
    v6[2] = ("vip", "2001:db8::10,2001:db8::11");
    assert_eq!(text.value("weir_backend_up", &v6), Some(0.0));
    let ups = text.samples.keys().filter(|(name, _)| name == "weir_backend_up").count();
    assert_eq!(ups, snapshot().backends.len());
}

#[test]
fn verdicts_are_summed_over_interfaces_by_reason() {
    let text = scraped();
    assert_eq!(text.value("weir_drops_total", &[("reason", "fragment")]), Some(7.0));
    assert_eq!(text.value("weir_passes_total", &[("reason", "not_vip")]), Some(5.0));
    assert_eq!(text.value("weir_rejects_total", &[("kind", "no_backend")]), Some(6.0));
    assert_eq!(text.value("weir_xdp_actions_total", &[("interface", "eth0"), ("action", "drop")]), Some(42.0));
    assert_eq!(text.value("weir_xdp_attached", &[("interface", "eth0"), ("mode", "native")]), Some(1.0));
    assert_eq!(text.value("weir_xdp_attached", &[("interface", "eth1"), ("mode", "none")]), Some(0.0));
}

/// A ring digest as the agent makes it.
fn ring_digest() -> String {
    let declared = Declared::new([7; 16], 31, [("10.0.0.1:80".parse().unwrap(), 1)]);
    digest(&declared, lb_common::flow::Family::V4, [None])
}

fn hex(text: &str) -> f64 {
    f64::from(u32::from_str_radix(text, 16).unwrap())
}

#[test]
fn rings_appear_once_for_each_family_with_digests_that_a_float_holds() {
    let text = scraped();
    for family in ["ipv4", "ipv6"] {
        let labels = [
            ("service_namespace", ""),
            ("service_name", "web"),
            ("port", "80"),
            ("protocol", "TCP"),
            ("family", family),
        ];
        let (declared, owners) = ring_digest().split_once('-').map(|(a, b)| (hex(a), hex(b))).unwrap();
        assert_eq!(text.value("weir_ring_declared_digest", &labels), Some(declared));
        assert_eq!(text.value("weir_ring_digest", &labels), Some(owners));
        assert_eq!(text.value("weir_slots_in_transition", &labels), Some(18.0));
        assert_eq!(text.value("weir_slots_tracked", &labels), Some(19.0));
    }
}

#[test]
fn agent_tells_of_its_configuration_its_maps_and_its_work() {
    let text = scraped();
    let map = [("map", "NAT_ESTABLISHED_V4")];
    assert_eq!(text.value("weir_build_info", &[("version", "1.2.3")]), Some(1.0));
    assert_eq!(text.value("weir_config_last_reload_successful", &[]), Some(1.0));
    assert_eq!(text.value("weir_map_entries", &map), Some(55.0));
    assert_eq!(text.value("weir_map_max_entries", &map), Some(56.0));
    assert_eq!(text.value("weir_flow_insert_failures_total", &map), Some(57.0));
    assert_eq!(text.value("weir_nat_ports_used", &[]), Some(53.0));
    assert_eq!(text.value("weir_nat_ports_max", &[]), Some(54.0));
    assert_eq!(text.value("weir_sync_last_success_timestamp_seconds", &[]), Some(51.5));
    assert_eq!(text.value("weir_hooks_lost_total", &[]), Some(55.0));
    assert_eq!(text.value("weir_sync_errors_total", &[("reason", "maps")]), Some(52.0));
    assert_eq!(text.value("weir_sync_duration_seconds_count", &[]), Some(1.0));
    let refused = [("map", "BACKENDS"), ("errno", "E2BIG")];
    assert_eq!(text.value("weir_map_update_errors_total", &refused), Some(1.0));
    assert!(text.value("weir_state_age_seconds", &[]).unwrap() > 1e9);
    for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds"] {
        assert!(text.value(&format!("process_{name}"), &[]).unwrap() > 0.0, "{name}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let started = text.value("process_start_time_seconds", &[]).unwrap();
    assert!((now - 3600.0..now + 2.0).contains(&started), "{started} against {now}");
}

#[test]
fn durations_of_checks_are_one_histogram_for_each_service_and_go_with_it() {
    let metrics = Metrics::new();
    metrics.check_durations().of_service(&ServiceName::of_file("web"))(Duration::from_millis(3));
    metrics.check_durations().of_service(&ServiceName::of_file("web"))(Duration::from_secs(60));
    metrics.check_durations().of_service(&ServiceName::of_file("gone"))(Duration::from_millis(3));
    let text = Text::read(&metrics.encode(&snapshot()));
    let web = [("service_namespace", ""), ("service_name", "web"), ("port", "80")];
    let name = "weir_service_check_duration_seconds";
    assert_eq!(text.value(&format!("{name}_count"), &web), Some(2.0));
    assert_eq!(text.value(&format!("{name}_bucket"), &with(&web, &[("le", "0.005")])), Some(1.0));
    assert_eq!(text.value(&format!("{name}_bucket"), &with(&web, &[("le", "+Inf")])), Some(2.0));
    assert!(text.samples.keys().all(|(_, labels)| labels.values().all(|value| value != "gone")));
}

#[test]
fn names_with_quotes_do_not_break_the_text() {
    let mut odd = snapshot();
    odd.services[0].name = "a\"b\\c\nd".to_owned();
    let text = Text::read(&Metrics::new().encode(&odd));
    assert!(text.samples.keys().any(|(_, labels)| labels.get("service_name") == Some(&odd.services[0].name)));
}

#[test]
fn agent_without_services_has_metrics_of_its_own() {
    let text = Text::read(&Metrics::new().encode(&Snapshot::default()));
    assert!(text.has("weir_build_info") && text.has("process_open_fds"), "{text:?}");
    assert!(!text.has("weir_service_info") && !text.has("weir_state_age_seconds"));
}
