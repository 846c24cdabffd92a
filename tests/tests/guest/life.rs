//! What happens to an agent under systemd: restarts, crashes, a hang, somebody who takes its filter
//! away, a reboot.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    scene::{START, Scene},
    traffic::Traffic,
};

pub fn restart(scene: &mut Scene) -> Result<()> {
    scene.does("systemctl restart over pinned maps", |scene| {
        let pid = scene.unit("MainPID")?;
        scene.machine.run("systemctl restart weir")?;
        scene.wait_in_order()?;
        ensure!(scene.unit("MainPID")? != pid, "the process is the same");
        expect_restarts(scene, 0)
    })
}

pub fn kill(scene: &mut Scene) -> Result<()> {
    scene.does("kill -9: systemd starts it again", |scene| {
        scene.machine.run("kill -9 $(systemctl show weir --property MainPID --value)")?;
        wait_restarts(scene, 1)
    })
}

pub fn watchdog(scene: &mut Scene) -> Result<()> {
    scene.does("kill -STOP: the watchdog ends it, systemd starts it again", |scene| {
        scene.machine.run("kill -STOP $(systemctl show weir --property MainPID --value)")?;
        wait_restarts(scene, 2)?;
        scene.machine.run("journalctl -u weir -b -o cat | grep -i 'watchdog timeout'").map(drop)
    })
}

/// How soon a filter is back that somebody has removed, on a machine that is emulated.
const AT_ONCE: Duration = Duration::from_millis(2500);

/// Only on kernels without tcx links can somebody take a filter away and leave the qdisc.
pub fn filter(scene: &mut Scene) -> Result<()> {
    if scene.machine.run("tc qdisc show dev eth0")?.contains("clsact") {
        scene.does("tc filter del: the filter is put back and counted", |scene| {
            // Three times: the slow look, every five seconds, finds none of them so soon but by
            // chance.
            for direction in ["ingress", "egress", "ingress"] {
                scene.machine.run(&format!(
                    "tc filter show dev eth0 {direction} | grep -q weir_ && tc filter del dev eth0 {direction}"
                ))?;
                let there = format!("tc filter show dev eth0 {direction} | grep weir_");
                scene.machine.wait_until(&there, AT_ONCE)?;
            }
            scene.machine.wait_until("weir status -o json | grep '\"lostHooks\": *3'", Duration::from_secs(20))?;
            let warnings = scene.machine.run("journalctl -u weir -b -o cat | grep -c 'level=warn.*a hook was lost'")?;
            ensure!(warnings.trim() == "3", "{warnings} warnings of a lost hook");
            Ok(())
        })?;
    } else {
        ensure!(scene.linux != "6.1", "Linux 6.1 has no tcx links, and eth0 no qdisc clsact");
    }
    Ok(())
}

/// The unit is enabled, so the machine serves again by itself. No connection lives through a reboot
/// of the only balancer.
pub fn reboot(scene: &mut Scene) -> Result<()> {
    scene.does("reboot", |scene| scene.machine.reboot())?;
    scene.does("after the reboot it serves by itself", |scene| {
        scene.machine.wait_until("systemctl is-active weir", START)?;
        scene.wait_in_order()?;
        expect_restarts(scene, 0)?;
        let traffic = Traffic::start(&scene.bed)?;
        traffic.goes_on()?;
        traffic.stop().map(drop)
    })
}

/// Waits until systemd has started it this often by itself, and all is in order.
fn wait_restarts(scene: &mut Scene, count: u32) -> Result<()> {
    let condition =
        format!("[ \"$(systemctl show weir --property NRestarts --value)\" -ge {count} ] && systemctl is-active weir");
    scene.machine.wait_until(&condition, START)?;
    scene.wait_in_order()?;
    expect_restarts(scene, count)
}

fn expect_restarts(scene: &mut Scene, count: u32) -> Result<()> {
    let restarts = scene.unit("NRestarts")?;
    ensure!(restarts == count.to_string(), "systemd has started it {restarts} times again, not {count} times");
    Ok(())
}
