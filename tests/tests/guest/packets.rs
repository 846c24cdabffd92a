//! The packet suite on the machine's own kernel: its verifier takes every program, and packets of
//! every mode and family are judged there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::machine::disk::{OBJECT, PACKET_SUITE};

use crate::scene::Scene;

/// Parts of the names of the tests that are run: every mode (`handshake`, `keep`: nat;
/// `every_packet_...`: dsr-l2 and dsr-ipip; `decap`), each of them in both families, XDP and TC,
/// and every verdict. The host runs all of the suite; here each costs ten times as much.
const RUN: [&str; 11] = [
    "verifier::",
    "handshake::",
    "keep::",
    "next_hop::",
    "vip::",
    "tc::",
    "decap::",
    "reasons::",
    "every_packet_goes_to_its_slots_owner",
    "tc_sends_in_the_same_tunnel",
    "partial_checksums_and_super_packets",
];
/// These load the programs a second time or try hundreds of headers.
const NOT_RUN: [&str; 2] = ["flow_that_finds_no_room", "congestion_marks_on_the_way"];

const PATIENCE: Duration = Duration::from_secs(300);

pub fn judge_every_packet(scene: &mut Scene) -> Result<()> {
    scene.does("packet suite by BPF_PROG_TEST_RUN", |scene| {
        let skipped = NOT_RUN.map(|test| format!("--skip {test}")).join(" ");
        let script = format!(
            "export WEIR_BPF_OBJECT=/root/weir/{OBJECT}\n./{PACKET_SUITE} --test-threads=1 {skipped} {}",
            RUN.join(" ")
        );
        let output = scene.machine.try_run(&script, PATIENCE)?;
        let result = output.stdout.lines().find(|line| line.starts_with("test result:"));
        println!("  Linux {:<5} {}", scene.linux, result.unwrap_or("the packet suite gives no result"));
        let tail: Vec<&str> = output.stdout.lines().rev().take(120).collect();
        let tail: String = tail.iter().rev().map(|line| format!("{line}\n")).collect();
        ensure!(output.status == 0, "it failed ({}):\n{tail}{}", output.status, output.stderr);
        let passed = result.and_then(|line| line.split_once("ok. ")?.1.split(' ').next()?.parse::<u32>().ok());
        ensure!(passed.context("no count")? > 45, "only {passed:?} tests were run");
        Ok(())
    })
}
