//! Servers come and go under load.
//!
//! In `dsr-l2` a slot that changes its owner takes its connections along until the loss-free
//! transition is built, so there the promises are about connections that are begun after the
//! change.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_userspace::state::{AdminState, Health};
use weir_tests::{
    bed::Layout,
    config::AgentConfig,
    load::Record,
    process::check,
    tally::{Ejection, Tally, begun_between, expect_no_failure},
};

use crate::scene::{HEALTH, Scene, seconds, stop_without_failure};

const NAT: Layout = Layout::Routed;
const DSR_L2: Layout = Layout::SharedL2;

#[test]
fn nat_spreads_connections_over_all_servers() -> Result<()> {
    spreads_connections_over_all_servers(NAT)
}

#[test]
fn dsr_l2_spreads_connections_over_all_servers() -> Result<()> {
    spreads_connections_over_all_servers(DSR_L2)
}

fn spreads_connections_over_all_servers(layout: Layout) -> Result<()> {
    let scene = Scene::new(layout, 3, 3)?;
    let load = scene.load()?;
    seconds(5.0);
    for family in load {
        let vip = family.vip;
        let (short, long) = family.stop()?;
        expect_no_failure(&short)?;
        expect_no_failure(&long)?;
        let tally = Tally::of(&short);
        for server in ["s1", "s2", "s3"] {
            let share = tally.servers.get(server).copied().unwrap_or(0) as f64 / tally.connections as f64;
            assert!((0.22..0.45).contains(&share), "{vip}: {server} got {share:.2} of {tally:?}");
        }
    }
    Ok(())
}

#[test]
fn nat_killed_server_costs_only_its_own_connections_and_only_for_as_long_as_promised() -> Result<()> {
    dead_server_costs_only_its_own_connections(NAT, |scene| scene.web[1].kill())
}

#[test]
fn nat_server_that_falls_silent_costs_only_its_own_connections_and_only_for_as_long_as_promised() -> Result<()> {
    dead_server_costs_only_its_own_connections(NAT, |scene| silence(scene, 1))
}

#[test]
fn dsr_l2_killed_server_costs_only_its_own_connections_and_only_for_as_long_as_promised() -> Result<()> {
    dead_server_costs_only_its_own_connections(DSR_L2, |scene| scene.web[1].kill())
}

/// Packets to the server arrive, and nothing comes back: no reset tells the client or the probe.
fn silence(scene: &Scene, index: usize) -> Result<()> {
    let rules =
        "table inet silent { chain arriving { type filter hook prerouting priority -300; meta l4proto tcp drop; }; }";
    check(scene.bed.servers[index].command("nft").arg(rules)).map(drop)
}

fn dead_server_costs_only_its_own_connections(
    layout: Layout,
    die: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<()> {
    let mut scene = Scene::new(layout, 3, 3)?;
    let load = scene.load()?;
    seconds(1.0);
    let died_at = Instant::now();
    die(&mut scene)?;
    let promised = HEALTH.promised_ejection();
    std::thread::sleep(promised + Duration::from_secs(3));
    for backend in scene.backends(2) {
        let view = scene.agent.backend(backend)?;
        assert!(view.health.is_down() && !view.eligible, "{view:?}");
        assert!(!view.reason.is_empty(), "{view:?}");
    }
    for family in load {
        let vip = family.vip;
        let (short, long) = family.stop()?;
        for (kind, records) in [("new", &short), ("long", &long)] {
            let ejection = Ejection::of(records, &scene.witness, "s2", died_at, promised);
            assert!(ejection.failures > 0, "{vip}: nothing of the death was seen by {kind} connections");
            ejection.expect_promised().map_err(|error| error.context(format!("{kind} connections to {vip}")))?;
        }
        let late = Tally::of(begun_between(&short, died_at + promised, Instant::now()));
        assert!(late.connections > 50 && late.failures == 0, "{vip}: {late:?}");
    }
    Ok(())
}

#[test]
fn nat_server_that_comes_back_gets_connections_again_without_a_failure() -> Result<()> {
    server_that_comes_back_gets_connections_again(NAT)
}

#[test]
fn dsr_l2_server_that_comes_back_gets_connections_again() -> Result<()> {
    server_that_comes_back_gets_connections_again(DSR_L2)
}

fn server_that_comes_back_gets_connections_again(layout: Layout) -> Result<()> {
    let mut scene = Scene::new(layout, 3, 3)?;
    scene.web[1].kill()?;
    for backend in scene.backends(2) {
        scene.agent.wait_health(backend, Health::Down, Duration::from_secs(20))?;
    }
    let load = scene.load()?;
    scene.web[1].restart()?;
    for backend in scene.backends(2) {
        scene.agent.wait_health(backend, Health::Up, Duration::from_secs(20))?;
    }
    let up_at = Instant::now() + Duration::from_millis(200);
    seconds(3.0);
    for family in &load {
        let short = family.short.records();
        let back = Tally::of(begun_between(&short, up_at, Instant::now()));
        assert!(back.servers.contains_key("s2"), "{}: {back:?}", family.vip);
        assert_eq!(back.failures, 0, "{}: {back:?}", family.vip);
    }
    if layout == NAT { stop_without_failure(load) } else { Ok(()) }
}

#[test]
fn nat_drained_server_keeps_its_connections_and_gets_no_new_one() -> Result<()> {
    drained_server_gets_no_new_connection(NAT)
}

#[test]
fn dsr_l2_drained_server_gets_no_new_connection() -> Result<()> {
    drained_server_gets_no_new_connection(DSR_L2)
}

fn drained_server_gets_no_new_connection(layout: Layout) -> Result<()> {
    let scene = Scene::new(layout, 3, 3)?;
    let load = scene.load()?;
    for backend in scene.backends(3) {
        let said = scene.agent.cli(&["drain", &format!("web/{backend}")])?;
        assert!(said.contains(&backend.to_string()), "{said:?}");
        assert_eq!(scene.agent.backend(backend)?.admin, AdminState::Draining);
    }
    let drained_at = Instant::now();
    let asked_before: Vec<u64> = load.iter().map(|family| answers_of(&family.long.records(), "s3")).collect();
    seconds(4.0);
    for (family, asked_before) in load.iter().zip(asked_before) {
        let vip = family.vip;
        let short = family.short.records();
        let after = Tally::of(begun_between(&short, drained_at, Instant::now()));
        assert!(after.connections > 50 && after.failures == 0, "{vip}: {after:?}");
        assert_eq!(after.servers.get("s3"), None, "{vip}: {after:?}");
        if layout == NAT {
            assert!(asked_before > 0, "{vip}: no long connection was at s3");
            assert!(
                answers_of(&family.long.records(), "s3") > asked_before,
                "{vip}: the connections of s3 stand still"
            );
        }
    }
    for backend in scene.backends(3) {
        scene.agent.cli(&["undrain", &format!("web/{backend}")])?;
    }
    let undrained_at = Instant::now();
    seconds(2.0);
    for family in &load {
        let after = Tally::of(begun_between(&family.short.records(), undrained_at, Instant::now()));
        assert!(after.servers.contains_key("s3") && after.failures == 0, "{}: {after:?}", family.vip);
    }
    if layout == NAT { stop_without_failure(load) } else { Ok(()) }
}

fn answers_of(records: &[Record], server: &str) -> u64 {
    records.iter().filter(|record| record.server.as_deref() == Some(server)).map(|record| record.requests).sum()
}

#[test]
fn nat_server_that_is_added_and_taken_out_again_costs_no_connection() -> Result<()> {
    let scene = Scene::new(NAT, 3, 2)?;
    let load = scene.load()?;
    scene.agent.configure(&AgentConfig::web(&scene.bed, 3, HEALTH))?;
    for backend in scene.backends(3) {
        scene.agent.wait_health(backend, Health::Up, Duration::from_secs(20))?;
    }
    let up_at = Instant::now();
    seconds(3.0);
    for family in &load {
        let added = Tally::of(begun_between(&family.short.records(), up_at, Instant::now()));
        assert!(added.servers.contains_key("s3"), "{}: {added:?}", family.vip);
    }

    scene.agent.configure(&AgentConfig::web(&scene.bed, 2, HEALTH))?;
    weir_tests::process::wait_for("s3 is marked as removed", Duration::from_secs(10), || {
        // With no flow of its own it may be gone already.
        let backends = scene.agent.backends()?;
        Ok(scene.backends(3).iter().all(|s3| backends.iter().all(|view| view.address != *s3 || view.removed)))
    })?;
    let removed_at = Instant::now() + Duration::from_millis(100);
    seconds(3.0);
    for family in &load {
        let after = Tally::of(begun_between(&family.short.records(), removed_at, Instant::now()));
        assert_eq!(after.servers.get("s3"), None, "{}: {after:?}", family.vip);
    }
    stop_without_failure(load)
}

#[test]
fn service_without_an_eligible_backend_resets_at_once() -> Result<()> {
    let scene = Scene::new(NAT, 1, 1)?;
    for backend in scene.backends(1) {
        scene.agent.cli(&["drain", &format!("web/{backend}")])?;
    }
    seconds(0.2);
    for vip in weir_tests::bed::VIPS {
        let url = weir_tests::tools::url((vip, 80).into(), "/");
        let mut curl: Command = scene.bed.client.command("curl");
        let output = weir_tests::process::output(curl.args(["--silent", "--show-error", "--max-time", "2", &url]))?;
        // 7: could not connect; 28 would be a time-out.
        assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
