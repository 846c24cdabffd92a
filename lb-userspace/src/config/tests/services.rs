use std::path::Path;

use super::{HEAD, check, service};
use crate::config::parse;

#[test]
fn keys_of_a_service_are_checked_each() {
    let with = |more: &str| {
        service(&format!(
            "    vips: [192.0.2.10]\n    port: 80\n    backends: [{{ address: 10.0.0.1, port: 80 }}]\n{more}"
        ))
    };
    let vips = |vips: &str| {
        service(&format!("    vips: {vips}\n    port: 80\n    backends: [{{ address: 10.0.0.1, port: 80 }}]\n"))
    };
    check(&[
        ("all right", with(""), &[]),
        (
            "nothing but a name",
            service(""),
            &[
                (4, "services[0].port", "missing"),
                (4, "services[0].vips", "missing"),
                (4, "services[0].backends", "missing"),
            ],
        ),
        ("service is a scalar", format!("{HEAD}services: [web]\n"), &[(3, "services[0]", "must be a mapping")]),
        ("name with slash", with("").replace("web", "a/b"), &[(4, "services[0].name", "letters, digits")]),
        ("name empty", with("").replace("web", "''"), &[(4, "services[0].name", "1 to 63")]),
        (
            "port zero",
            with("").replace("port: 80\n", "port: 0\n"),
            &[(6, "services[0].port", "must be 1 to 65535, is 0")],
        ),
        (
            "port too large",
            with("").replace("port: 80\n", "port: 65536\n"),
            &[(6, "services[0].port", "must be 1 to 65535, is 65536")],
        ),
        (
            "port is a word",
            with("").replace("port: 80\n", "port: http\n"),
            &[(6, "services[0].port", "must be a number")],
        ),
        ("port is a list", with("").replace("port: 80\n", "port: [80]\n"), &[(6, "services[0].port", "is a list")]),
        (
            "port huge",
            with("").replace("port: 80\n", "port: 99999999999999999999999999999999999999999999\n"),
            &[(6, "services[0].port", "must be a number")],
        ),
        ("mode", with("    mode: dsr\n"), &[(8, "services[0].mode", "must be one of nat, dsr-l2")]),
        ("later mode gue", with("    mode: dsr-gue\n"), &[(8, "services[0].mode", "not in this version of weir yet")]),
        ("keep with dsr", with("    mode: dsr-l2\n    source: keep\n"), &[(9, "services[0].source", "nat only")]),
        ("keep with ipip", with("    mode: dsr-ipip\n    source: keep\n"), &[(9, "services[0].source", "nat only")]),
        ("settling in nat", with("    settleTime: 2s\n"), &[]),
        ("onDead in nat", with("    onDead: reset\n"), &[]),
        ("drop in nat", with("    onDead: drop\n"), &[(8, "services[0].onDead", "dsr-l2 and dsr-ipip only")]),
        ("onDead", with("    mode: dsr-l2\n    onDead: rst\n"), &[(9, "services[0].onDead", "next, reset, drop")]),
        ("dsr keys", with("    mode: dsr-ipip\n    settleTime: 2s\n    onDead: drop\n"), &[]),
        (
            "settling at once",
            with("    mode: dsr-l2\n    settleTime: 100ms\n"),
            &[(9, "services[0].settleTime", "must be 1s to")],
        ),
        ("affinity", with("    affinity: client\n"), &[(8, "services[0].affinity", "none, client-ip")]),
        ("ring not prime", with("    ringSize: 16384\n"), &[(8, "services[0].ringSize", "16381, 16411")]),
        ("ring too small", with("    ringSize: 19\n"), &[(8, "services[0].ringSize", "set it to 23")]),
        ("ring too large", with("    ringSize: 2000003\n"), &[(8, "services[0].ringSize", "must be 2 to 1048576")]),
        ("ring at the upper end", with("    ringSize: 1048575\n"), &[(8, "services[0].ringSize", "near it: 1048573")]),
        ("drain at once", with("    drainTimeout: 0s\n"), &[]),
        (
            "drain for too long",
            with("    drainTimeout: 31d\n"),
            &[(8, "services[0].drainTimeout", "must be 0s to 30d, is 31d")],
        ),
        ("drain without unit", with("    drainTimeout: 15\n"), &[(8, "services[0].drainTimeout", "unit")]),
        ("no vips", vips("[]"), &[(5, "services[0].vips", "at least one address")]),
        ("vip unspecified", vips("[0.0.0.0]"), &[(5, "services[0].vips[0]", "unspecified")]),
        ("vip loopback", vips("[127.0.0.1]"), &[(5, "services[0].vips[0]", "loopback")]),
        ("vip multicast", vips("[224.0.0.1]"), &[(5, "services[0].vips[0]", "multicast")]),
        ("vip broadcast", vips("[255.255.255.255]"), &[(5, "services[0].vips[0]", "broadcast")]),
        ("vip link-local", vips("[169.254.1.1]"), &[(5, "services[0].vips[0]", "link-local")]),
        (
            "vip v6 bad",
            vips("[\"fe80::1\", \"ff02::1\", \"::\", \"::1\", \"::ffff:10.0.0.1\"]"),
            &[
                (5, "services[0].vips[0]", "link-local"),
                (5, "services[0].vips[1]", "multicast"),
                (5, "services[0].vips[2]", "unspecified"),
                (5, "services[0].vips[3]", "loopback"),
                (5, "services[0].vips[4]", "IPv4-mapped"),
            ],
        ),
        ("vip is a name", vips("[example.org]"), &[(5, "services[0].vips[0]", "must be an IPv4 or IPv6 address")]),
        (
            "vip without a backend of its family",
            vips("[192.0.2.10, \"2001:db8::10\"]"),
            &[(5, "services[0].vips[1]", "no backend of its family: add an IPv6")],
        ),
        (
            "vip twice",
            vips("[192.0.2.10, 192.0.2.10]"),
            &[(5, "services[0].vips[1]", "192.0.2.10:80 is served by service web already, in line 5")],
        ),
    ]);
}

#[test]
fn keys_of_backends_are_checked_each() {
    let of = |backends: &str| service(&format!("    vips: [192.0.2.10]\n    port: 80\n    backends:\n{backends}"));
    check(&[
        (
            "missing keys",
            of("      - {}\n      - { address: 10.0.0.1 }\n"),
            &[
                (8, "services[0].backends[0].address", "missing"),
                (8, "services[0].backends[0].port", "missing"),
                (9, "services[0].backends[1].port", "missing"),
            ],
        ),
        (
            "port zero",
            of("      - { address: 10.0.0.1, port: 80 }\n      - { address: 10.0.0.2, port: 0 }\n"),
            &[(9, "services[0].backends[1].port", "must be 1 to 65535, is 0")],
        ),
        (
            "twice",
            of("      - { address: 10.0.0.1, port: 80 }\n      - { address: 10.0.0.1, port: 80 }\n"),
            &[(9, "services[0].backends[1]", "already, in line 8")],
        ),
        (
            "two ports of one address",
            of("      - { address: 10.0.0.1, port: 80 }\n      - { address: 10.0.0.1, port: 81 }\n"),
            &[],
        ),
        (
            "weight",
            of("      - { address: 10.0.0.1, port: 80, weight: -1 }\n"),
            &[(8, "services[0].backends[0].weight", "must be 0 to 1000000, is -1")],
        ),
        (
            "all weights zero",
            of("      - { address: 10.0.0.1, port: 80, weight: 0 }\n      - { address: \"fd02::1\", port: 80 }\n"),
            &[(8, "services[0].backends", "every IPv4 backend has weight 0")],
        ),
        (
            "one weight zero",
            of("      - { address: 10.0.0.1, port: 80, weight: 0 }\n      - { address: 10.0.0.2, port: 80 }\n"),
            &[],
        ),
        (
            "a family without a vip",
            of("      - { address: 10.0.0.1, port: 80 }\n      - { address: \"fd02::1\", port: 80, weight: 0 }\n"),
            &[],
        ),
        (
            "state",
            of("      - { address: 10.0.0.1, port: 80, state: drain }\n"),
            &[(8, "services[0].backends[0].state", "must be one of active, draining, disabled")],
        ),
        (
            "zone empty",
            of("      - { address: 10.0.0.1, port: 80, zone: '' }\n"),
            &[(8, "services[0].backends[0].zone", "leave it out")],
        ),
        (
            "unknown key",
            of("      - { address: 10.0.0.1, port: 80, wieght: 2 }\n"),
            &[(8, "services[0].backends[0].wieght", "did you mean weight?")],
        ),
        (
            "a vip",
            of("      - { address: 192.0.2.10, port: 81 }\n"),
            &[(8, "services[0].backends[0]", "is a VIP of service web")],
        ),
        (
            "loopback",
            of("      - { address: 127.0.0.1, port: 81 }\n      - { address: 10.0.0.1, port: 80 }\n"),
            &[(8, "services[0].backends[0].address", "an address of the node itself")],
        ),
        (
            "other port with dsr-l2",
            of("      - { address: 10.0.0.1, port: 8080 }\n    mode: dsr-l2\n"),
            &[(8, "services[0].backends[0]", "must be 80 as the service's, is 8080")],
        ),
        (
            "ring too small for its backends",
            of(&(1..=60).map(|n| format!("      - {{ address: 10.0.0.{n}, port: 80 }}\n")).collect::<String>())
                .replace("name: web\n", "name: web\n    ringSize: 1021\n"),
            &[(
                5,
                "services[0].ringSize",
                "too small for 60 backends of one family, each needs 20 slots: set it to 1201",
            )],
        ),
    ]);
}

#[test]
fn probes_are_checked_each() {
    let of = |health: &str| {
        service(&format!(
            "    vips: [192.0.2.10]\n    port: 80\n    backends: [{{ address: 10.0.0.1, port: 80 }}]\n    health: \
            {health}\n"
        ))
    };
    check(&[
        ("tcp", of("{ tcp: {} }"), &[]),
        ("tcp null", of("{ tcp: }"), &[]),
        ("http empty", of("{ http: {} }"), &[]),
        ("short interval takes the time-out with it", of("{ tcp: {}, interval: 500ms }"), &[]),
        ("neither", of("{ interval: 2s }"), &[(8, "services[0].health", "how to probe")]),
        ("both", of("{ tcp: {}, http: {} }"), &[(8, "services[0].health.tcp", "not by both")]),
        ("tcp with a key", of("{ tcp: { port: 80 } }"), &[(8, "services[0].health.tcp.port", "unknown key")]),
        (
            "time-out longer than interval",
            of("{ tcp: {}, interval: 1s, timeout: 2s }"),
            &[(8, "services[0].health.timeout", "longer than the interval, 1s, is 2s")],
        ),
        (
            "zeros",
            of("{ tcp: {}, interval: 0s, timeout: 0s, fall: 0, rise: 0 }"),
            &[
                (8, "services[0].health.interval", "must be 10ms"),
                (8, "services[0].health.timeout", "must be 10ms"),
                (8, "services[0].health.fall", "must be 1 to 100, is 0"),
                (8, "services[0].health.rise", "must be 1 to 100, is 0"),
            ],
        ),
        ("expect one", of("{ http: { expect: 200 } }"), &[]),
        ("expect reversed", of("{ http: { expect: 399-200 } }"), &[(8, "services[0].health.http.expect", "status")]),
        ("expect too far", of("{ http: { expect: 200-600 } }"), &[(8, "services[0].health.http.expect", "status")]),
        ("path", of("{ http: { path: healthz } }"), &[(8, "services[0].health.http.path", "must begin with /")]),
        (
            "path with line end",
            of("{ http: { path: \"/a\\r\\nX: y\" } }"),
            &[(8, "services[0].health.http.path", "no spaces")],
        ),
        (
            "host with line end",
            of("{ http: { host: \"a\\nb\" } }"),
            &[(8, "services[0].health.http.host", "host name")],
        ),
    ]);
}

#[test]
fn what_services_share_is_checked_between_them_even_if_one_is_wrong_elsewhere() {
    let two = |second: &str| {
        format!(
            "{HEAD}snat: {{ addresses: [10.9.0.1] }}\nservices:\n  - {{ name: web, vips: [192.0.2.10], port: 80, \
            backends: [{{ address: 10.0.0.1, port: 80 }}] }}\n  - {second}\n"
        )
    };
    check(&[
        (
            "another port",
            two("{ name: tls, vips: [192.0.2.10], port: 443, backends: [{ address: 10.0.0.1, port: 80 }] }"),
            &[],
        ),
        (
            "same name",
            two("{ name: web, vips: [192.0.2.11], port: 80, backends: [{ address: 10.0.0.1, port: 80 }] }"),
            &[(6, "services[1].name", "line 5 is named web too")],
        ),
        (
            "same vip and port",
            two("{ name: tls, vips: [192.0.2.10], port: 80, mode: natt, backends: [{ address: 10.0.0.1, port: 80 }] }"),
            &[
                (6, "services[1].vips[0]", "192.0.2.10:80 is served by service web already, in line 5"),
                (6, "services[1].mode", "nat"),
            ],
        ),
        (
            "vip is a snat address",
            two("{ name: tls, vips: [10.9.0.1], port: 80, backends: [{ address: 10.0.0.1, port: 80 }] }"),
            &[(3, "snat", "10.9.0.1 is a VIP")],
        ),
        (
            "backend is a vip of another",
            two("{ name: tls, vips: [192.0.2.11], port: 80, backends: [{ address: 192.0.2.10, port: 80 }] }"),
            &[(6, "services[1].backends[0]", "is a VIP of service web")],
        ),
    ]);
}

#[test]
fn service_may_have_no_backend_at_all() {
    let text = service("    vips: [192.0.2.10, \"2001:db8::10\"]\n    port: 80\n    backends: []\n");
    let config = parse(&text, Path::new("weir.yaml")).unwrap();
    assert_eq!((config.services[0].vips.len(), config.services[0].backends.len()), (2, 0));
}
