//! A bed whose balancer is a machine with systemd, and the steps of its life, each of which says
//! what it took.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lb_userspace::view::types::BackendView;
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    config::{AgentConfig, Backend, Health, Probe, Service},
    machine::{Machine, disk},
    servers::Nginx,
};

use crate::traffic::Traffic;

/// Fields are dropped in this order: the machine goes before its bed.
pub struct Scene {
    pub machine: Machine,
    pub linux: &'static str,
    pub bed: Bed,
    traffic: Option<Traffic>,
    _web: Vec<Nginx>,
    began: Instant,
    failed: Vec<String>,
}

/// What the machine finds on its disk beside what was built: configurations, and an editor that
/// puts the first of them in place.
const FILES: [&str; 2] = ["weir.yaml", "weir-more.yaml"];
const EDITOR: &str = "#!/bin/sh\ncat /root/weir/weir.yaml > \"$1\"\n";

/// Emulation is slow, and two machines share the processors with all the rest.
const HEALTH: Health = Health {
    probe: Probe::Http,
    interval: Duration::from_secs(3),
    timeout: Duration::from_millis(2500),
    fall: 3,
    rise: 1,
};

/// How long the agent may take from its start until everything is in order: the verifier alone
/// takes 20 s.
pub const START: Duration = Duration::from_secs(180);

/// Where the service is that only the second configuration has.
pub const MORE_PORT: u16 = 8081;

impl Scene {
    pub fn boot(linux: &'static str) -> Result<Self> {
        let began = Instant::now();
        let bed = Bed::new(Layout::SharedL2, 2)?;
        let web = bed.start_web_servers()?;
        let [first, second] = configurations(&bed).map(|config| config.to_string());
        let files = [(FILES[0], first.as_str()), (FILES[1], second.as_str()), ("editor", EDITOR)];
        let disk = disk::make(&bed.dir(), &files)?;
        let machine = Machine::boot(&bed, linux, &disk)?;
        let mut scene = Self { machine, linux, bed, traffic: None, _web: web, began, failed: Vec::new() };
        scene.step("boot", began, |scene| {
            let release = scene.machine.run("uname -r")?;
            ensure!(release.starts_with(&format!("{linux}.")), "it runs Linux {release}");
            scene.machine.run(
                "mkdir -p /root/weir /mnt/clone && mount -o ro /dev/vdb /mnt/clone && cp -a \
                /mnt/clone/. /root/weir && umount /mnt/clone && chmod +x /root/weir/editor",
            )?;
            let failed = scene.machine.run("systemctl --failed --no-legend --plain")?;
            ensure!(failed.is_empty(), "units failed at boot: {failed}");
            Ok(())
        })?;
        Ok(scene)
    }

    /// Does it and says what it took. Nothing of the traffic that goes on may fail meanwhile, and
    /// all of it goes on afterwards.
    pub fn does(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.step(what, Instant::now(), |scene| {
            work(scene)?;
            scene.traffic.as_ref().map_or(Ok(()), Traffic::goes_on)
        })
    }

    fn step(&mut self, what: &str, began: Instant, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let done = work(self);
        let verdict = if done.is_ok() { "ok" } else { "FAILED" };
        println!("  Linux {:<5} {what:<70} {verdict:>6} {:>6.1} s", self.linux, began.elapsed().as_secs_f32());
        let Err(error) = done else { return Ok(()) };
        let journal = self
            .machine
            .run("systemctl status weir --no-pager -l | head -20; journalctl -u weir --no-pager -o cat | tail -n 25");
        let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
        let error = error
            .context(format!("Linux {}: {what}", self.linux))
            .context(format!("the unit and its journal:\n{journal}"));
        // To see what else fails, while something is being mended.
        if std::env::var_os("WEIR_GUEST_GO_ON").is_none() {
            return Err(error);
        }
        println!("{error:?}");
        self.failed.push(what.to_owned());
        Ok(())
    }

    pub fn begin_traffic(&mut self) -> Result<()> {
        self.traffic = Some(Traffic::start(&self.bed)?);
        self.does("traffic through dsr-l2 and nat in both families", |_| Ok(()))
    }

    /// Ends the traffic, of which nothing may have failed.
    pub fn end_traffic(&mut self) -> Result<()> {
        let Some(traffic) = self.traffic.take() else { bail!("there is no traffic") };
        let summary = traffic.stop();
        self.step("traffic ends without a failure", Instant::now(), |scene| {
            println!("  Linux {:<5} {}", scene.linux, summary?);
            Ok(())
        })
    }

    pub fn traffic(&self) -> Result<&Traffic> {
        self.traffic.as_ref().context("there is no traffic")
    }

    pub fn end(self) -> Result<()> {
        println!("  Linux {:<5} {:.0} s in all", self.linux, self.began.elapsed().as_secs_f32());
        ensure!(self.failed.is_empty(), "failed on Linux {}: {}", self.linux, self.failed.join("; "));
        Ok(())
    }

    /// Waits until the unit is active and `weir status` says ok.
    pub fn wait_in_order(&mut self) -> Result<String> {
        self.machine.wait_until("systemctl is-active weir > /dev/null && weir status", START)
    }

    /// A property of the unit.
    pub fn unit(&mut self, property: &str) -> Result<String> {
        Ok(self.machine.run(&format!("systemctl show weir --property {property} --value"))?.trim().to_owned())
    }

    pub fn backends(&mut self) -> Result<Vec<BackendView>> {
        let text = self.machine.run("weir get backends -o json")?;
        serde_json::from_str(&text).with_context(|| format!("`weir get backends` printed {text:?}"))
    }

    /// What no run may leave in the journal of this boot, and what a person should see of it.
    pub fn expect_clean_journal(&mut self) -> Result<()> {
        // The kernel's lines as well: what seccomp or an LSM refuses stands there.
        let journal =
            self.machine.run("journalctl -u weir -b --no-pager -o cat; journalctl -k -b --no-pager -o cat")?;
        let forbidden = [
            "Operation not permitted",
            "ermission denied",
            "panicked",
            "Start request repeated",
            "audit: type=1326",
            "apparmor=\"DENIED\"",
            "Out of memory",
        ];
        let found: Vec<&str> =
            journal.lines().filter(|line| forbidden.iter().any(|words| line.contains(words))).take(10).collect();
        ensure!(found.is_empty(), "the journal has: {}", found.join("\n"));
        fs::write(self.bed.dir().join("journal"), &journal).context("can't keep the journal")
    }
}

/// The first configuration, and one with a service more.
fn configurations(bed: &Bed) -> [AgentConfig; 2] {
    let mut config = AgentConfig::web(bed, 2, HEALTH);
    config.socket = "/run/weir/agent.sock".into();
    let web = config.services[0].clone();
    config.services.push(nat(&web, "web-nat", 8080));
    let mut more = config.clone();
    more.services.push(nat(&web, "web-more", MORE_PORT));
    [config, more]
}

fn nat(web: &Service, name: &str, port: u16) -> Service {
    let backends: Vec<Backend> = web.backends.clone();
    Service { name: name.to_owned(), vips: VIPS.to_vec(), port, mode: "nat", backends, ..web.clone() }
}
