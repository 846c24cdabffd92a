use std::{path::Path, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    model::{Affinity, FlowTables, Limits, Mode, OnDead, Probe, SourceAddress, Tunnel, XdpMode},
    state::AdminState,
};

mod limits;
mod manual;
mod schema;
mod services;

const HEAD: &str = "version: 1\ninterfaces: [eth0]\n";

/// One service, in line 4, with `more` lines that begin in line 5.
fn service(more: &str) -> String {
    format!("{HEAD}services:\n  - name: web\n{more}")
}

fn found(text: &str) -> Vec<(usize, String, String)> {
    match parse(text, Path::new("weir.yaml")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.into_iter().map(|one| (one.line, one.key, one.reason)).collect(),
    }
}

/// Name of the case, the text, and for each problem its line, its key and a part of its reason.
type Case<'a> = (&'a str, String, &'a [(usize, &'a str, &'a str)]);

fn check(cases: &[Case<'_>]) {
    for (name, text, expected) in cases {
        let found = found(text);
        let places: Vec<(usize, &str)> = found.iter().map(|(line, key, _)| (*line, key.as_str())).collect();
        let wanted: Vec<(usize, &str)> = expected.iter().map(|(line, key, _)| (*line, *key)).collect();
        assert_eq!(places, wanted, "{name}: {found:#?}");
        for ((_, _, reason), (_, _, part)) in found.iter().zip(*expected) {
            assert!(reason.contains(part), "{name}: {reason:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_document_that_is_no_mapping_or_no_yaml_is_refused_with_its_line() {
    check(&[
        ("empty", String::new(), &[(1, "", "the file is empty")]),
        ("comment only", "# nothing\n".to_owned(), &[(1, "", "the file is empty")]),
        ("list", "- a\n".to_owned(), &[(1, "", "must be a mapping")]),
        ("scalar", "hello\n".to_owned(), &[(1, "", "must be a mapping")]),
        ("open quote", format!("{HEAD}services: \"\n"), &[(3, "", "not YAML")]),
        ("tab", format!("{HEAD}services:\n\t- a\n"), &[(4, "", "not YAML")]),
        ("two documents", format!("{HEAD}services: []\n---\nversion: 1\n"), &[(4, "", "second document")]),
        ("tag", format!("{HEAD}services: !include web.yaml\n"), &[(3, "", "tag")]),
        ("unknown alias", format!("{HEAD}services: *web\n"), &[(3, "", "not YAML")]),
        (
            "glob without quotes",
            "version: 1\ninterfaces: [*eth]\nservices: []\n".to_owned(),
            &[(2, "", "quote a glob")],
        ),
    ]);
}

#[test]
fn keys_of_the_whole_node_are_checked_each() {
    let top = |more: &str| format!("{HEAD}services: []\n{more}\n");
    check(&[
        ("all right", top(""), &[]),
        (
            "everything missing",
            "{}\n".to_owned(),
            &[(1, "version", "is missing"), (1, "interfaces", "is missing"), (1, "services", "is missing")],
        ),
        ("version", "version: 2\ninterfaces: [eth0]\nservices: []\n".to_owned(), &[(1, "version", "must be 1")]),
        ("no interface", "version: 1\ninterfaces: []\nservices: []\n".to_owned(), &[(2, "interfaces", "at least one")]),
        ("interface null", "version: 1\ninterfaces:\nservices: []\n".to_owned(), &[(2, "interfaces", "has no value")]),
        (
            "interfaces no list",
            "version: 1\ninterfaces: eth0\nservices: []\n".to_owned(),
            &[(2, "interfaces", "must be a list")],
        ),
        (
            "interface twice",
            "version: 1\ninterfaces: [eth0, eth0]\nservices: []\n".to_owned(),
            &[(2, "interfaces[1]", "twice")],
        ),
        (
            "interface too long",
            "version: 1\ninterfaces: [abcdefghijklmnop]\nservices: []\n".to_owned(),
            &[(2, "interfaces[0]", "longer")],
        ),
        ("interface glob", "version: 1\ninterfaces: ['enp*s0']\nservices: []\n".to_owned(), &[]),
        (
            "unknown key",
            top("hashseed: 00112233445566778899aabbccddeeff"),
            &[(4, "hashseed", "did you mean hashSeed?")],
        ),
        ("strange key", top("colour: red"), &[(4, "colour", "known here: version")]),
        ("duplicate key", top("xdpMode: auto\nxdpMode: native"), &[(5, "xdpMode", "given twice: first in line 4")]),
        ("xdpMode", top("xdpMode: natve"), &[(4, "xdpMode", "did you mean native?")]),
        ("short seed", top("hashSeed: 8f1c"), &[(4, "hashSeed", "32 hex digits, is 4")]),
        ("seed not hex", top("hashSeed: 0011223344556677x899aabbccddeeff"), &[(4, "hashSeed", "not all")]),
        ("seed of digits alone, unquoted", top("hashSeed: 00112233445566778899001122334455"), &[]),
        ("no port range", top("snat: { ports: [] }"), &[(4, "snat.ports", "at least one range")]),
        (
            "ranges overlap",
            top("snat: { ports: [1024-2000, 2000-3000] }"),
            &[(4, "snat.ports[1]", "overlaps 1024-2000")],
        ),
        ("empty range", top("snat: { ports: [3000-2000] }"), &[(4, "snat.ports[0]", "range of ports")]),
        ("range from zero", top("snat: { ports: [0-2000] }"), &[(4, "snat.ports[0]", "range of ports")]),
        ("range too far", top("snat: { ports: [1024-65536] }"), &[(4, "snat.ports[0]", "range of ports")]),
        ("too many ranges", top("snat: { ports: [1, 2, 3, 4, 5] }"), &[(4, "snat.ports", "at most 4")]),
        ("snat loopback", top("snat: { addresses: [\"::1\"] }"), &[(4, "snat.addresses[0]", "loopback")]),
        ("snat twice", top("snat: { addresses: [10.0.0.1, 10.0.0.1] }"), &[(4, "snat.addresses[1]", "twice")]),
        (
            "timeout zero",
            top("timeouts: { halfOpen: 0s, established: 0, closing: 0ms }"),
            &[
                (4, "timeouts.halfOpen", "must be 1s to"),
                (4, "timeouts.established", "must be 1s"),
                (4, "timeouts.closing", "must be 1s"),
            ],
        ),
        ("timeout without unit", top("timeouts: { established: 30 }"), &[(4, "timeouts.established", "unit")]),
        ("peers", top("tunnel: { peers: [10.0.0.1, 10.1.0.0/16, \"fd00::/8\", \"fd01::1\"] }"), &[]),
        (
            "peer with bits behind",
            top("tunnel: { peers: [10.1.0.1/16] }"),
            &[(4, "tunnel.peers[0]", "write 10.1.0.0/16")],
        ),
        ("peer twice", top("tunnel: { peers: [10.1.0.1, 10.1.0.1/32] }"), &[(4, "tunnel.peers[1]", "twice")]),
        ("peers that are everybody", top("tunnel: { peers: [\"::/0\"] }"), &[(4, "tunnel.peers[0]", "1 to 128 bits")]),
        ("prefix too long", top("tunnel: { source: [10.1.0.0/33] }"), &[(4, "tunnel.source[0]", "1 to 32 bits")]),
        ("no prefix", top("tunnel: { source: [10.1/16] }"), &[(4, "tunnel.source[0]", "as in 10.0.0.0/24")]),
        (
            "two sources of a family",
            top("tunnel: { source: [10.1.0.0/16, 10.2.0.0/16] }"),
            &[(4, "tunnel.source", "can have one IPv4 prefix")],
        ),
        ("sources", top("tunnel: { source: [10.1.0.0/16, \"fd00:1::/96\"] }"), &[]),
        ("flow table too small", top("flowTables: { halfOpen: 10 }"), &[(4, "flowTables.halfOpen", "must be 1024 to")]),
        (
            "more seen than can be kept",
            top("flowTables: { established: 2048, seen: 4096 }"),
            &[(4, "flowTables.seen", "not exceed `established`, 2048")],
        ),
        ("relative socket", top("admin: { socket: agent.sock }"), &[(4, "admin.socket", "absolute")]),
        ("http without port", top("admin: { http: 0.0.0.0 }"), &[(4, "admin.http", "ADDRESS:PORT")]),
        ("http port zero", top("admin: { http: \"0.0.0.0:0\" }"), &[(4, "admin.http", "1 to 65535")]),
        ("snat is a scalar", top("snat: 10.0.0.1"), &[(4, "snat", "must be a mapping")]),
    ]);
}

#[test]
fn all_mistakes_are_named_at_once_in_the_order_of_their_lines() {
    let text = "\
version: 3
interfaces: []
xdpMode: fast
services:
  - name: web
    vips: [192.0.2.10, \"2001:db8::10\"]
    port: 0
    ringSize: 16384
    colour: red
    backends:
      - { address: 10.0.0.1, port: 0 }
  - name: web
    vips: [192.0.2.300]
    port: 80
    backends: []
";
    check(&[(
        "many",
        text.to_owned(),
        &[
            (1, "version", ""),
            (2, "interfaces", ""),
            (3, "xdpMode", ""),
            (7, "services[0].port", ""),
            (8, "services[0].ringSize", ""),
            (9, "services[0].colour", ""),
            (11, "services[0].backends[0].port", ""),
            (12, "services[1].name", ""),
            (13, "services[1].vips[0]", ""),
        ],
    )]);
}

#[test]
fn a_problem_is_shown_with_file_line_column_key_and_reason() {
    let text = service("    vips: [192.0.2.10]\n    port: 0\n    backends: [{ address: 10.0.0.1, port: 80 }]\n");
    let problems = parse(&text, Path::new("/etc/weir.yaml")).unwrap_err();
    assert_eq!(problems.to_string(), "/etc/weir.yaml:6:11: services[0].port: must be 1 to 65535, is 0");
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = service(
        "    vips: [192.0.2.10]\n    port: 80\n    backends: [{ address: 10.0.0.1, port: 8080 }]\n    health: { tcp: \
        {} }\n",
    );
    let config = parse(&text, Path::new("weir.yaml")).unwrap();
    assert_eq!((config.node.xdp_mode, config.node.hash_seed), (XdpMode::Auto, None));
    assert_eq!(config.node.snat.ports, [(1024, 32767), (61000, 65535)]);
    assert!(config.node.snat.addresses.is_empty());
    assert_eq!(config.node.timeouts.half_open, Duration::from_secs(30));
    assert_eq!(config.node.timeouts.established, Duration::from_secs(7200));
    assert_eq!(config.node.timeouts.closing, Duration::from_secs(60));
    assert_eq!(config.node.admin.socket, Path::new("/run/weir/agent.sock"));
    assert_eq!(config.node.admin.http, Some("0.0.0.0:9560".parse().unwrap()));
    let [web] = &config.services[..] else { panic!("one service") };
    assert_eq!((web.mode, web.source, web.affinity), (Mode::Nat, SourceAddress::Translate, Affinity::None));
    assert_eq!((web.ring_size, web.drain_timeout), (16381, Duration::from_secs(900)));
    assert_eq!((web.settle_time, web.on_dead), (Duration::from_secs(900), OnDead::Next));
    assert_eq!((config.node.tunnel, web.backends[0].tunnel), (Tunnel::default(), None));
    assert_eq!(config.node.flow_tables, FlowTables { established: 131_072, half_open: 131_072, seen: 131_072 });
    let health = web.health.as_ref().unwrap();
    assert_eq!(
        (&health.probe, health.interval, health.timeout, health.fall, health.rise),
        (&Probe::Tcp, Duration::from_secs(2), Duration::from_secs(1), 3, 2)
    );
    assert_eq!((web.backends[0].weight, web.backends[0].state, &web.backends[0].zone), (1, AdminState::Active, &None));
}

#[test]
fn metrics_are_turned_off_by_an_empty_or_null_address() {
    for http in ["\"\"", "null", ""] {
        let text = format!("{HEAD}services: []\nadmin: {{ http: {http} }}\n");
        assert_eq!(parse(&text, Path::new("weir.yaml")).unwrap().node.admin.http, None, "{http:?}");
    }
}

#[test]
fn only_a_node_that_takes_packets_out_of_tunnels_needs_no_services() {
    let config = parse(&format!("{HEAD}tunnel: {{ peers: [10.0.0.0/24] }}\n"), Path::new("weir.yaml")).unwrap();
    assert_eq!((config.services.len(), config.node.tunnel.peers.len()), (0, 1));
    check(&[("no peers", format!("{HEAD}tunnel: {{ source: [10.0.0.0/24] }}\n"), &[(1, "services", "is missing")])]);
}

#[test]
fn fewer_established_exceptions_than_the_default_make_fewer_that_are_seen() {
    let config = parse(&format!("{HEAD}services: []\nflowTables: {{ established: 4096 }}\n"), Path::new("weir.yaml"));
    assert_eq!(config.unwrap().node.flow_tables, FlowTables { established: 4096, half_open: 131_072, seen: 4096 });
}

#[test]
fn services_vips_and_backends_are_sorted() {
    let text = format!(
        "{HEAD}services:\n  - {{ name: b, vips: [192.0.2.2, 192.0.2.1], port: 80, backends: [{{ address: 10.0.0.2, \
        port: 80 }}, {{ address: 10.0.0.1, port: 80 }}] }}\n  - {{ name: a, vips: [192.0.2.3], port: 80, backends: \
        [{{ address: 10.0.0.2, port: 80 }}] }}\n"
    );
    let config = parse(&text, Path::new("weir.yaml")).unwrap();
    assert_eq!(config.services.iter().map(|one| one.name.name()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(config.services[1].vips.is_sorted());
    assert!(config.services[1].backends.is_sorted_by_key(|one| one.address));
}

#[test]
fn the_example_is_valid_and_has_a_seed_of_its_own() {
    let [one, other] =
        [example().unwrap(), example().unwrap()].map(|text| parse(&text, Path::new("example.yaml")).unwrap());
    assert!(one.node.hash_seed.is_some() && one.node.hash_seed != other.node.hash_seed);
    assert_eq!(one.services, other.services);
}

#[test]
fn the_deployed_examples_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        load(&path).unwrap_or_else(|error| panic!("{error}"));
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["dsr-ipip-backend.yaml", "dsr-ipip.yaml", "dsr-l2.yaml", "keep-source.yaml", "nat.yaml"]);
}

proptest! {
    #[test]
    fn no_text_panics_the_reader(text in any::<String>()) {
        found(&text);
    }

    #[test]
    fn no_text_of_yaml_marks_panics_the_reader(text in "[\\[\\]{}:,&*!|>'\"%@`#?~ab \\-\n\t0-9]{0,64}") {
        found(&text);
    }

    #[test]
    fn no_damage_to_the_example_panics_the_reader(
        at in 0_usize..3000,
        junk in "[\\[\\]{}:,&*!|>'\"\\-\n 0a]{0,3}",
        cut in 0_usize..20,
    ) {
        let example: Vec<char> = include_str!("example.yaml").chars().collect();
        let at = at.min(example.len());
        let (before, after) = (&example[..at], &example[(at + cut).min(example.len())..]);
        let damaged: String = before.iter().copied().chain(junk.chars()).chain(after.iter().copied()).collect();
        for (line, ..) in found(&damaged) {
            prop_assert!(line >= 1 && line <= damaged.lines().count() + 1);
        }
    }
}
