//! `cargo xtask bench` runs to its end and reports every case. What it measures is not judged here:
//! other work on the machine decides that. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

fn bench(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bench {} failed: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bench_packet_reports_every_case_as_json() {
    let rows: Value = serde_json::from_str(&bench(&["packet", "--quick", "--json", "--rounds", "2"])).unwrap();
    let mut seen = BTreeSet::new();
    for row in rows.as_array().unwrap() {
        let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["family", "flows", "kind", "mode", "ns_median", "ns_min", "transition"]);
        assert!(row["ns_median"].is_f64() && row["ns_min"].is_f64(), "{row}");
        let number = |key: &str| row[key].as_u64().unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        seen.insert((text("mode"), number("family"), text("kind"), number("flows"), number("transition")));
    }
    let mut wanted = BTreeSet::new();
    for family in [4, 6] {
        let mut want = |mode: &str, kind: &str, flows: &[u64], transition: u64| {
            wanted.extend(flows.iter().map(|flows| (mode.to_owned(), family, kind.to_owned(), *flows, transition)));
        };
        want("none", "floor", &[65536], 0);
        want("none", "not-vip", &[65536], 0);
        for kind in ["data", "reply"] {
            want("nat", kind, &[1024, 65536], 0);
        }
        for mode in ["dsr-l2", "dsr-ipip"] {
            for kind in ["syn", "data"] {
                for transition in [0, 10] {
                    want(mode, kind, &[1, 1024, 65536], transition);
                }
            }
        }
    }
    assert_eq!(seen, wanted);
}

#[test]
fn bench_forward_gets_frames_through_every_dsr_mode() {
    let said = bench(&["forward", "--rounds", "1", "--packets", "50000"]);
    for row in ["dsr-l2 v4", "dsr-l2 v6", "dsr-ipip v4", "dsr-ipip v6"] {
        assert!(said.contains(row), "{row} is missing in\n{said}");
    }
}

#[test]
fn bench_control_reports_every_figure_as_json() {
    let size = ["--services", "10", "--backends", "4", "--ring", "101", "--default-limits"];
    let pace = ["--seconds", "1", "--changes", "4", "--interval", "500", "--flips", "2"];
    let report: Value = serde_json::from_str(&bench(&[&["control", "--json"], &size[..], &pace].concat())).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&report), ["binary", "figures", "machine", "size"]);
    let mut targets = BTreeSet::new();
    for figure in report["figures"].as_array().unwrap() {
        assert_eq!(keys(figure), ["met", "name", "target", "unit", "value", "what"]);
        assert!(figure["value"].is_number(), "{figure}");
        assert_eq!(figure["met"].is_boolean(), figure["target"].is_number(), "{figure}");
        if figure["target"].is_number() {
            targets.insert(figure["name"].as_str().unwrap().to_owned());
        }
    }
    let wanted = [
        "burst_max",
        "change_p99",
        "change_read_max",
        "flip_read_max",
        "memory_reloaded",
        "memory_small_reloaded",
        "memory_small_started",
        "memory_started",
        "probe_user",
        "probes",
        "rest",
        "start",
        "start_again",
    ];
    assert_eq!(targets, wanted.map(str::to_owned).into());
}
