//! What a person on call sees: traces, lookups, exceptions and drops, as they really happen.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lb_common::settings::Settings;
use lb_userspace::{
    dataplane::maps::Maps,
    view::{
        trace::TraceView,
        types::{FlowView, LookupView, ReasonView},
    },
};
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIPS},
    config::AgentConfig,
    process::wait_for,
    tools::{curl, url},
};

use crate::scene::{HEALTH, Scene, seconds};

/// `weir trace`, running.
struct Trace(Child);

impl Trace {
    /// Returns when the programs tell.
    fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let wait = |what: &str, told: bool| wait_for(what, Duration::from_secs(5), || Ok(is_told(agent)? == told));
        wait("no other trace runs", false)?;
        let mut command = agent.weir(&[&["trace", "-o", "json"], arguments].concat())?;
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("can't start weir trace")?;
        wait("the programs tell", true)?;
        Ok(Self(child))
    }

    /// What it told, and what it said at its end.
    fn stop(self) -> Result<(Vec<TraceView>, String)> {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let output = self.0.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("weir trace failed: {said}");
        }
        let lines = String::from_utf8(output.stdout)?;
        let told = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok((told, said))
    }
}

/// Whether the programs tell what they decide.
fn is_told(agent: &Agent) -> Result<bool> {
    let settings = Maps::open(&agent.pin_dir)?.read()?.settings.context("no settings")?;
    Ok(settings.flags & Settings::FLAG_TRACE != 0)
}

fn client(vip: IpAddr) -> IpAddr {
    let text = if vip.is_ipv4() { "10.1.0.2" } else { "fd01::2" };
    text.parse().expect("written here")
}

/// One request; the number of the server that answered.
fn ask(scene: &Scene, vip: IpAddr) -> Result<u16> {
    let answer = curl(&scene.bed.client, &url((vip, 80).into(), "/?n=1"))?;
    let server = answer.split(' ').next().unwrap_or_default();
    server.trim_start_matches('s').parse().with_context(|| format!("{answer:?} names no server"))
}

#[test]
fn trace_tells_which_backend_each_connection_met_and_why() -> Result<()> {
    for layout in [Layout::Routed, Layout::SharedL2] {
        let scene = Scene::new(layout, 3, 3)?;
        for vip in VIPS {
            let trace = Trace::start(&scene.agent, &["--vip", &SocketAddr::new(vip, 80).to_string()])?;
            let mut servers = Vec::new();
            for _ in 0..8 {
                servers.push(ask(&scene, vip)?);
            }
            seconds(0.3);
            let (told, said) = trace.stop()?;
            assert!(said.contains(&format!("{} decisions told, none left out", told.len())), "{said}");
            let syns: Vec<&TraceView> =
                told.iter().filter(|view| view.tcp_flags.as_deref() == Some("SYN") && view.hook == "xdp").collect();
            let met: Vec<_> = syns.iter().map(|view| view.backend).collect();
            let expected: Vec<_> = servers.iter().map(|number| Some(scene.bed.backend(*number, vip))).collect();
            assert_eq!(met, expected, "{layout:?} {vip}: {told:#?}");
            for view in &syns {
                assert_eq!((view.src.ip(), view.dst), (client(vip), (vip, 80).into()));
                let slot = view.slot.as_ref().context("a SYN without a slot")?;
                assert_eq!((view.service.as_deref(), slot.current), (Some("web"), view.backend), "{view:?}");
                // The backends came up one after the other.
                let rule = if slot.state == "settled" { "ring" } else { "current" };
                assert_eq!(view.rule.as_deref(), Some(rule), "{view:?}");
            }
            let answers = told.iter().filter(|view| view.to.is_some_and(|to| to.src == (vip, 80).into())).count();
            assert_eq!(answers > 0, layout == Layout::Routed, "answers of nat are told as well: {told:#?}");
        }
    }
    Ok(())
}

#[test]
fn nothing_is_told_any_more_when_the_trace_ends_or_the_agent_does() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 1, 1)?;
    let patience = Duration::from_secs(5);
    assert!(!is_told(&scene.agent)?);
    let trace = Trace::start(&scene.agent, &[])?;
    assert!(is_told(&scene.agent)?);
    trace.stop()?;
    wait_for("the flag is cleared behind the last trace", patience, || Ok(!is_told(&scene.agent)?))?;

    let mut trace = Trace::start(&scene.agent, &[])?;
    scene.agent.kill()?;
    assert_eq!(trace.0.wait()?.code(), Some(1));
    assert!(is_told(&scene.agent)?, "a killed agent can't clear it");
    scene.agent.start_again()?;
    wait_for("the next agent clears it", patience, || Ok(!is_told(&scene.agent)?))?;

    let mut trace = Trace::start(&scene.agent, &[])?;
    let begun = std::time::Instant::now();
    scene.agent.stop()?;
    assert!(begun.elapsed() < patience, "the agent waits for who is listening");
    assert_eq!(trace.0.wait()?.code(), Some(1));
    assert!(!is_told(&scene.agent)?);
    Ok(())
}

#[test]
fn drops_are_counted_for_the_service_that_they_hit() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    for number in [1, 2] {
        for backend in scene.backends(number) {
            scene.agent.cli(&["drain", &backend.to_string()])?;
        }
    }
    let trace = Trace::start(&scene.agent, &["--drops-only"])?;
    for vip in VIPS {
        assert!(curl(&scene.bed.client, &url((vip, 80).into(), "/")).is_err());
        assert!(curl(&scene.bed.client, &url((vip, 81).into(), "/")).is_err());
    }
    seconds(0.3);
    let (told, _) = trace.stop()?;
    let text = scene.agent.cli(&["get", "drops", "-o", "json"])?;
    let counted: Vec<ReasonView> = serde_json::from_str(&text)?;
    for vip in VIPS {
        let refused = |reason: &str, vip: Option<SocketAddr>| {
            let of = |view: &&ReasonView| view.reason == reason && view.vip == vip;
            counted.iter().find(of).map_or(0, |view| view.packets_total)
        };
        assert_eq!(refused("no_backend", Some((vip, 80).into())), 1, "{text}");
        assert_eq!(refused("port_not_served", None), 2, "{text}");
        let reasons: Vec<_> = told
            .iter()
            .filter(|view| view.dst.ip() == vip)
            .map(|view| (view.dst.port(), view.reason.as_str()))
            .collect();
        assert_eq!(reasons, [(80, "no_backend"), (81, "port_not_served")], "{told:#?}");
    }
    let metrics = scene.agent.metrics()?;
    let is_its = |line: &&str| line.starts_with("weir_service_refusals_total{") && line.contains("no_backend");
    assert_eq!(metrics.lines().filter(is_its).count(), 2, "{metrics}");
    Ok(())
}

#[test]
fn exceptions_are_listed_with_why_and_lookup_follows_them() -> Result<()> {
    let bed = Bed::new(Layout::SharedL2, 2)?;
    let mut config = AgentConfig::web(&bed, 2, HEALTH);
    config.services[0].settle_time = Some(Duration::from_secs(600));
    let scene = Scene::with(bed, &config)?;
    let load = scene.load()?;
    // The slots of the first server are in transition; connections that are open stay there.
    for backend in scene.backends(1) {
        scene.agent.cli(&["drain", &backend.to_string()])?;
    }
    seconds(2.0);
    let text = scene.agent.cli(&["get", "flows", "--seen", "--limit", "100000", "-o", "json"])?;
    let flows: Vec<FlowView> = serde_json::from_str(&text)?;
    for vip in VIPS {
        let to = |number, why: &str| {
            let backend = scene.bed.backend(number, vip);
            flows.iter().find(|flow| flow.backend == backend && flow.why == why && flow.state == "established")
        };
        let seen = to(1, "seen in transition").with_context(|| format!("no old flow of {vip}: {text}"))?;
        let view = lookup(&scene, seen)?;
        assert_eq!((view.under_way.backend, view.under_way.why.as_str()), (Some(seen.backend), "previous"), "{view:?}");
        assert_eq!(view.slot.as_ref().map(|slot| slot.state.as_str()), Some("in transition"));
        assert_eq!(view.entries.len(), 1, "{view:?}");
    }
    let opened = flows.iter().find(|flow| flow.why == "opened in transition").context("no new flow is noted")?;
    assert_ne!(lookup(&scene, opened)?.why, "ring");
    let text = scene.agent.cli(&["get", "flows", "-o", "json"])?;
    assert!(!text.contains("seen in transition"), "{text}");
    for family in load {
        family.stop()?;
    }
    Ok(())
}

fn lookup(scene: &Scene, flow: &FlowView) -> Result<LookupView> {
    let text = scene.agent.cli(&["lookup", &flow.client.to_string(), &flow.vip.to_string(), "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}
