//! The packet suite on the machine's own kernel: its verifier takes every program, and packets of
//! every mode and family are judged there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::machine::disk::{OBJECT, PACKET_SUITE};

use crate::scene::Scene;

/// Tests that can't hold on a kernel, each with the reason; they are named in the output.
const NOT_THERE: [(&str, &str, &str); 0] = [];

/// Properties over thousands of random packets are for the host, whose processor is not emulated.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn judge_every_packet(scene: &mut Scene) -> Result<()> {
    scene.does("packet suite by BPF_PROG_TEST_RUN", |scene| {
        let mut arguments = String::new();
        for (linux, test, reason) in NOT_THERE {
            if linux == scene.linux {
                println!("  Linux {linux:<5} not run: {test}: {reason}");
                arguments += &format!(" --skip {test}");
            }
        }
        let script =
            format!("export WEIR_BPF_OBJECT=/root/weir/{OBJECT}\n./{PACKET_SUITE} --test-threads=1{arguments}");
        let output = scene.machine.try_run(&script, PATIENCE)?;
        let result = output.stdout.lines().find(|line| line.starts_with("test result:"));
        println!("  Linux {:<5} {}", scene.linux, result.unwrap_or("the packet suite gives no result"));
        let tail: Vec<&str> = output.stdout.lines().rev().take(120).collect();
        let tail: String = tail.iter().rev().map(|line| format!("{line}\n")).collect();
        ensure!(output.status == 0, "it failed ({}):\n{tail}{}", output.status, output.stderr);
        let passed = result.and_then(|line| line.split_once("ok. ")?.1.split(' ').next()?.parse::<u32>().ok());
        ensure!(passed.context("no count")? > 50, "only {passed:?} tests were run");
        Ok(())
    })
}
