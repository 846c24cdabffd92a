//! Installed, upgraded and removed by the commands of docs/operations.md as they stand
//! there.

use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::{
    document::Section,
    machine::{disk, repository},
};

use crate::scene::{START, Scene};

const BUILD: &str = "cargo xtask build --release";
/// What the section must still tell, or this test no longer shows what it says.
const INSTALL: [&str; 8] = [
    BUILD,
    "install -m 0755 target/release/weir /usr/local/bin/weir",
    "install -m 0644 deploy/systemd/weir.service /etc/systemd/system/weir.service",
    "weir config init > /etc/weir/weir.yaml",
    "${EDITOR:-vi}\" /etc/weir/weir.yaml",
    "weir config check /etc/weir/weir.yaml",
    "systemctl enable --now weir",
    "weir status",
];

fn section(title: &str) -> Result<Section> {
    Section::read(&repository("docs/operations.md"), title)
}

/// Every command of the section but the first, which the host has done.
pub fn install(scene: &mut Scene) -> Result<()> {
    let commands = section("Install")?.commands();
    for expected in INSTALL {
        ensure!(
            commands.iter().any(|command| command.contains(expected)),
            "docs/operations.md, Install, has no command `{expected}`: the test must follow the document"
        );
    }
    for command in commands.iter().filter(|command| *command != BUILD) {
        let shown: String = command.chars().take(50).collect();
        scene.does(&format!("install: {shown}"), |scene| {
            let script = format!("export EDITOR=/root/weir/editor\n{command}");
            if command.starts_with("weir status") {
                // Until the first probes have been answered it says that they were not.
                return scene.machine.wait_until(&script, START).map(drop);
            }
            scene.machine.run(&script).map(drop)
        })?;
    }
    scene.does("first start: active, enabled, in native XDP", |scene| {
        scene.machine.run("systemctl is-active weir && systemctl is-enabled weir")?;
        scene.wait_in_order()?;
        let interfaces = scene.machine.run("weir get interfaces")?;
        ensure!(interfaces.contains("native"), "{interfaces}");
        let restarts = scene.unit("NRestarts")?;
        ensure!(restarts == "0", "systemd had to start it {restarts} times again");
        Ok(())
    })
}

/// To the build with the other layout of maps. (The way back is shown end to end, with the same
/// capabilities.)
pub fn upgrade(scene: &mut Scene) -> Result<()> {
    let section = section("Restart, upgrade, roll back, remove")?;
    let [restart, status] = [section.names("systemctl restart weir")?, section.names("weir status")?];
    section.names("install")?;
    scene.does("upgrade to another layout of maps", |scene| {
        scene.machine.run(&format!("install -m 0755 {} /usr/local/bin/weir", disk::OTHER))?;
        scene.machine.run(restart)?;
        scene.machine.wait_until(status, START)?;
        scene.machine.run("journalctl -u weir -b -o cat | grep 'took over the data path of another build'").map(drop)
    })?;
    scene.does("the journal has no refusal, the unit no restart", |scene| {
        let restarts = scene.unit("NRestarts")?;
        ensure!(restarts == "0", "systemd had to start it {restarts} times again");
        scene.expect_clean_journal()
    })
}

/// Nothing of Weir stays in the kernel.
pub fn remove(scene: &mut Scene) -> Result<()> {
    let section = section("Restart, upgrade, roll back, remove")?;
    let remove = section.names("systemctl disable --now weir && weir cleanup")?;
    scene.does("removal leaves no pin, no XDP program, no filter and no qdisc", |scene| {
        scene.expect_clean_journal()?;
        scene.machine.run(remove)?;
        let left = scene.machine.try_run(
            "ls -d /sys/fs/bpf/weir 2> /dev/null; ip -details link show eth0 | grep -o 'prog/xdp.*'; tc qdisc show \
            dev eth0 | grep clsact; \
             tc filter show dev eth0 ingress; tc filter show dev eth0 egress",
            Duration::from_secs(30),
        )?;
        ensure!(left.stdout.is_empty(), "left behind:\n{}", left.stdout);
        let enabled = scene.machine.try_run("systemctl is-enabled weir", Duration::from_secs(30))?;
        ensure!(enabled.stdout.trim() == "disabled", "the unit is {}", enabled.stdout);
        Ok(())
    })
}
