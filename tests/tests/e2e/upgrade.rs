//! Two builds whose maps are laid out otherwise take over from each other, forward and back, under
//! load.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_userspace::state::{AdminState, Health, Origin};
use weir_tests::{
    agent::{other_binary, weir_binary},
    bed::Layout,
    tally::Tally,
};

use crate::scene::{Scene, seconds, stop_without_failure};

#[test]
fn nat_survives_the_upgrade_to_another_layout_of_maps_and_back() -> Result<()> {
    survives_upgrade_and_back(Layout::Routed)
}

#[test]
fn dsr_l2_survives_the_upgrade_to_another_layout_of_maps_and_back() -> Result<()> {
    survives_upgrade_and_back(Layout::SharedL2)
}

/// Nothing is lost: no connection, no verdict of a probe, nothing that a person has set, no count.
fn survives_upgrade_and_back(layout: Layout) -> Result<()> {
    let mut scene = troubled(layout)?;
    let load = scene.load()?;
    let mut counted = connections(&scene)?;
    for binary in builds()? {
        scene.agent.stop()?;
        scene.agent.binary = binary;
        let log = log_length(&scene)?;
        scene.agent.start_again()?;
        expect_migrated(&scene, log)?;
        expect_trouble(&scene)?;
        let now = connections(&scene)?;
        assert!(now >= counted, "{counted} connections were counted before, {now} are now");
        counted = now;
        seconds(2.0);
    }
    for family in &load {
        let all = Tally::of(&family.short.records());
        assert_eq!(all.servers.get("s2"), None, "{}: {all:?}", family.vip);
    }
    stop_without_failure(load)
}

#[test]
fn agent_killed_at_any_moment_of_the_upgrade_costs_nothing() -> Result<()> {
    let mut scene = troubled(Layout::Routed)?;
    let load = scene.load()?;
    let builds = builds()?;
    for (number, binary) in builds.iter().cycle().take(12).enumerate() {
        scene.agent.kill()?;
        scene.agent.binary = binary.clone();
        scene.agent.launch()?;
        // From before it has opened anything until it has taken over, on a machine of any speed.
        seconds(0.1 * 1.35_f64.powi(number as i32));
    }
    scene.agent.kill()?;
    scene.agent.start_again()?;
    expect_trouble(&scene)?;
    let pins = fs::read_dir(&scene.agent.pin_dir).context("can't list the pins")?;
    let left: Vec<String> = pins
        .map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()))
        .filter(|name: &Result<String>| name.as_ref().is_ok_and(|name| name.ends_with("-new")))
        .collect::<Result<_>>()?;
    assert_eq!(left, Vec::<String>::new());
    let log = fs::read_to_string(&scene.agent.log).context("can't read the agent's log")?;
    assert!(log.contains("was interrupted"), "no kill came in the middle of a migration: other delays are needed");
    stop_without_failure(load)
}

/// The build with the other layout, and back.
fn builds() -> Result<[PathBuf; 2]> {
    Ok([other_binary()?, weir_binary()?])
}

/// Three servers, of which the second is down and the third drained by hand, with a weight of its
/// own.
fn troubled(layout: Layout) -> Result<Scene> {
    let mut scene = Scene::new(layout, 3, 3)?;
    for backend in scene.backends(3) {
        scene.agent.cli(&["set", "weight", &format!("web/{backend}"), "3"])?;
        scene.agent.cli(&["drain", &format!("web/{backend}")])?;
    }
    scene.web[1].kill()?;
    for backend in scene.backends(2) {
        scene.agent.wait_health(backend, Health::Down, Duration::from_secs(20))?;
    }
    Ok(scene)
}

/// Each server is as [`troubled`] has left it, known without a probe.
fn expect_trouble(scene: &Scene) -> Result<()> {
    for backend in scene.backends(2) {
        let view = scene.agent.backend(backend)?;
        assert_eq!((view.health, view.eligible), (Health::Down, false), "just after the start: {view:?}");
    }
    for backend in scene.backends(3) {
        let view = scene.agent.backend(backend)?;
        let set = (view.admin, view.admin_from, view.weight);
        assert_eq!(set, (AdminState::Draining, Origin::Cli, 3), "{view:?}");
    }
    Ok(())
}

fn log_length(scene: &Scene) -> Result<usize> {
    Ok(fs::metadata(&scene.agent.log).context("can't look at the agent's log")?.len() as usize)
}

/// The log, from `begin` on, tells of the maps whose layout differs between the builds, and of no
/// loss.
fn expect_migrated(scene: &Scene, begin: usize) -> Result<()> {
    let log = fs::read_to_string(&scene.agent.log).context("can't read the agent's log")?;
    let log = log.get(begin..).context("the agent's log has become shorter")?;
    for map in
        ["SETTINGS", "SERVICES_V6", "BACKENDS", "SERVICE_STATS", "NAT_ESTABLISHED_V4", "NAT_ESTABLISHED_V6", "SEEN_V4"]
    {
        let is_told = log.lines().any(|line| line.contains("map migrated") && line.contains(&format!("map={map} ")));
        ensure!(is_told, "the log does not tell that {map} was migrated:\n{log}");
    }
    let done = log.lines().find(|line| line.contains("took over the data path of another build"));
    println!("{}", done.with_context(|| format!("the log does not tell of a migration:\n{log}"))?);
    ensure!(!log.contains("level=error"), "errors in the log:\n{log}");
    Ok(())
}

/// Connections that were counted, in all.
fn connections(scene: &Scene) -> Result<u64> {
    let metrics = scene.agent.metrics()?;
    let counted = metrics.lines().filter(|line| line.starts_with("weir_service_connections_total{"));
    Ok(counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}
