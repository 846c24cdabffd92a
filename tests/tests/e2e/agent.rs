//! The agent dies, comes back, is told nonsense.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_userspace::{
    state::{AdminState, Health, Origin},
    view::types::Overall,
};
use weir_tests::{
    bed::{Layout, VIPS},
    config::{self, AgentConfig},
    process::{check, output, wait_for},
    tally::{Tally, begun_between},
    tools::{curl, url},
};

use crate::scene::{HEALTH, Scene, seconds, stop_without_failure};

#[test]
fn nat_agent_killed_and_restarted_under_load_costs_nothing_and_keeps_a_down_server_out() -> Result<()> {
    agent_killed_and_restarted_costs_nothing(Layout::Routed)
}

#[test]
fn dsr_l2_agent_killed_and_restarted_under_load_costs_nothing_and_keeps_a_down_server_out() -> Result<()> {
    agent_killed_and_restarted_costs_nothing(Layout::SharedL2)
}

fn agent_killed_and_restarted_costs_nothing(layout: Layout) -> Result<()> {
    let mut scene = Scene::new(layout, 3, 3)?;
    scene.web[1].kill()?;
    for backend in scene.backends(2) {
        scene.agent.wait_health(backend, Health::Down, Duration::from_secs(20))?;
    }
    let load = scene.load()?;
    scene.agent.kill()?;
    seconds(2.0);
    scene.agent.start_again()?;
    for backend in scene.backends(2) {
        let view = scene.agent.backend(backend)?;
        assert_eq!((view.health, view.eligible), (Health::Down, false), "just after the restart: {view:?}");
    }
    seconds(4.0);
    for family in &load {
        let all = Tally::of(&family.short.records());
        assert_eq!(all.servers.get("s2"), None, "{}: {all:?}", family.vip);
    }
    stop_without_failure(load)
}

#[test]
fn agent_stopped_and_started_again_costs_nothing_and_rings_stay() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 3, 3)?;
    let load = scene.load()?;
    let digests = |scene: &Scene| -> Result<Vec<String>> {
        Ok(scene.agent.services()?.into_iter().map(|service| service.ring_digest).collect())
    };
    let before = digests(&scene)?;
    scene.agent.stop()?;
    seconds(1.0);
    scene.agent.start_again()?;
    assert_eq!(digests(&scene)?, before);
    seconds(2.0);
    stop_without_failure(load)
}

#[test]
fn programs_that_the_kernel_refuses_leave_no_pin_and_say_why_in_a_few_lines() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 2, 2)?;
    let load = scene.load()?;
    let pins = |scene: &Scene| -> Result<BTreeSet<String>> {
        let entries = fs::read_dir(&scene.agent.pin_dir).context("can't list the pins")?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let before = pins(&scene)?;
    scene.agent.stop()?;
    // Without CAP_PERFMON the verifier takes no arithmetic with pointers.
    let granted = scene.agent.capabilities.clone();
    scene.agent.capabilities = granted.replace(",+perfmon", "");
    assert_ne!(scene.agent.capabilities, granted);
    let refused = |scene: &mut Scene| -> Result<()> {
        let said = scene.agent.start_refused()?;
        assert!(said.contains("the kernel refuses the program") && said.contains("lacks CAP_PERFMON"), "{said}");
        assert!(said.contains("of the verifier's log") && said.lines().count() < 40, "{said}");
        Ok(())
    };
    refused(&mut scene)?;
    assert_eq!(pins(&scene)?, before);
    scene.agent.capabilities = granted.clone();
    scene.agent.start_again()?;
    seconds(1.0);
    stop_without_failure(load)?;

    scene.agent.cleanup()?;
    scene.agent.capabilities = granted.replace(",+perfmon", "");
    refused(&mut scene)?;
    assert!(!scene.agent.pin_dir.exists(), "{:?}", pins(&scene));
    scene.agent.capabilities = granted;
    scene.agent.start_again()
}

#[test]
fn record_of_layouts_is_written_again_by_a_running_agent_and_else_takes_one_start_with_more_capabilities() -> Result<()>
{
    let mut scene = Scene::new(Layout::Routed, 2, 2)?;
    let load = scene.load()?;
    let record = scene.agent.pin_dir.join("LAYOUTS");
    fs::remove_file(&record).context("can't delete the record")?;
    wait_for("the record is written again", Duration::from_secs(15), || Ok(record.exists()))?;
    scene.agent.stop()?;
    scene.agent.start_again()?;

    scene.agent.stop()?;
    fs::remove_file(&record).context("can't delete the record")?;
    let said = scene.agent.start_refused()?;
    assert!(said.contains("is not recorded") && said.contains("CAP_SYS_ADMIN"), "{said}");
    assert!(said.contains("docs/operations.md"), "{said}");
    let granted = scene.agent.capabilities.clone();
    scene.agent.capabilities.push_str(",+sys_admin");
    scene.agent.start_again()?;
    scene.agent.stop()?;
    scene.agent.capabilities = granted;
    scene.agent.start_again()?;
    seconds(1.0);
    stop_without_failure(load)
}

#[test]
fn bad_configuration_changes_nothing_and_shows_in_status_and_metrics() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    let load = scene.load()?;
    let good = fs::read_to_string(&scene.agent.config_file).context("can't read the configuration")?;
    let bad = good.replace("port: 80\n", "port: 0\n    colour: red\n");
    assert_ne!(bad, good);
    config::write(&scene.agent.config_file, &bad)?;
    wait_for("the status shows the refused file", Duration::from_secs(10), || {
        Ok(!scene.agent.status()?.config.last_reload_ok)
    })?;
    let status = scene.agent.status()?;
    let errors = status.config.errors.join("\n");
    assert!(errors.contains("colour") && errors.contains("port"), "all errors at once: {errors}");
    assert_eq!(status.state, Overall::Degraded, "{status:?}");
    wait_for("the metrics show it", Duration::from_secs(5), || {
        Ok(scene.agent.metrics()?.contains("weir_config_last_reload_successful 0"))
    })?;
    assert_eq!(scene.agent.try_cli(&["status"])?.status.code(), Some(1));

    config::write(&scene.agent.config_file, &good)?;
    scene.agent.reload()?;
    wait_for("the status shows the good file", Duration::from_secs(10), || {
        Ok(scene.agent.status()?.config.last_reload_ok)
    })?;
    wait_for("the metrics show it", Duration::from_secs(5), || {
        Ok(scene.agent.metrics()?.contains("weir_config_last_reload_successful 1"))
    })?;
    stop_without_failure(load)
}

#[test]
fn start_with_a_bad_file_ends_with_its_errors_and_leaves_the_data_path() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 2, 2)?;
    let load = scene.load()?;
    let good = fs::read_to_string(&scene.agent.config_file).context("can't read the configuration")?;
    scene.agent.kill()?;
    config::write(&scene.agent.config_file, &good.replace("mode: nat", "mode: magic"))?;
    let Err(error) = scene.agent.start_again() else { anyhow::bail!("the agent started with `mode: magic`") };
    let said = format!("{error:#}");
    assert!(said.contains("ended") && said.contains("mode"), "{said}");
    config::write(&scene.agent.config_file, &good)?;
    scene.agent.start_again()?;
    stop_without_failure(load)
}

#[test]
fn what_a_person_set_persists_over_reload_and_restart_and_can_be_taken_back() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 3, 3)?;
    let [drained, _] = scene.backends(3);
    let [weighted, _] = scene.backends(1);
    scene.agent.cli(&["drain", &format!("web/{drained}")])?;
    scene.agent.cli(&["set", "weight", &format!("web/{weighted}"), "3"])?;
    expect_overrides(&scene, drained, weighted)?;

    let mut config = AgentConfig::web(&scene.bed, 3, HEALTH);
    config.services[0].backends.iter_mut().for_each(|backend| backend.weight = 2);
    scene.agent.configure(&config)?;
    let [other, _] = scene.backends(2);
    wait_for("the new file is in force", Duration::from_secs(10), || Ok(scene.agent.backend(other)?.weight == 2))?;
    expect_overrides(&scene, drained, weighted)?;

    scene.agent.kill()?;
    scene.agent.start_again()?;
    expect_overrides(&scene, drained, weighted)?;

    scene.agent.cli(&["undrain", &format!("web/{drained}")])?;
    let view = scene.agent.backend(drained)?;
    assert_eq!((view.admin, view.admin_from), (AdminState::Active, Origin::File), "{view:?}");
    scene.agent.cli(&["set", "weight", &format!("web/{weighted}"), "--reset"])?;
    let view = scene.agent.backend(weighted)?;
    assert_eq!((view.weight, view.weight_from), (2, Origin::File), "{view:?}");
    Ok(())
}

fn expect_overrides(scene: &Scene, drained: SocketAddr, weighted: SocketAddr) -> Result<()> {
    let view = scene.agent.backend(drained)?;
    assert_eq!((view.admin, view.admin_from), (AdminState::Draining, Origin::Cli), "{view:?}");
    let view = scene.agent.backend(weighted)?;
    assert_eq!((view.weight, view.weight_from), (3, Origin::Cli), "{view:?}");
    Ok(())
}

#[test]
fn running_agent_finds_no_difference_between_what_is_wanted_and_what_is_programmed() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    let diff = scene.agent.cli(&["diff", "-o", "json"])?;
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&diff)?, Vec::<serde_json::Value>::new());
    let status = scene.agent.status()?;
    assert_eq!(status.state, Overall::Ok, "{status:?}");
    assert_eq!(scene.agent.try_cli(&["status"])?.status.code(), Some(0));
    Ok(())
}

#[test]
fn lookup_names_the_server_that_a_connection_then_meets() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 3, 3)?;
    let load = scene.load()?;
    seconds(1.0);
    for family in load {
        let (short, _) = family.stop()?;
        for record in short.iter().filter(|record| record.server.is_some()).take(20) {
            // The socket is bound to any address; this is the client's.
            let client = if record.local.is_ipv4() { "10.1.0.2" } else { "fd01::2" };
            let client = SocketAddr::new(client.parse()?, record.local.port());
            let text = scene.agent.cli(&["lookup", &client.to_string(), &record.target.to_string(), "-o", "json"])?;
            let view: lb_userspace::view::types::LookupView = serde_json::from_str(&text)?;
            let number: u16 = record.server.as_deref().unwrap_or_default().trim_start_matches('s').parse()?;
            assert_eq!(view.backend, Some(scene.bed.backend(number, family_vip(record.target))), "{view:?}");
        }
    }
    Ok(())
}

fn family_vip(target: SocketAddr) -> std::net::IpAddr {
    if target.is_ipv4() { VIPS[0] } else { VIPS[1] }
}

#[test]
fn cleanup_takes_all_away_and_leaves_a_plain_router() -> Result<()> {
    let mut scene = Scene::new(Layout::Routed, 1, 1)?;
    let vip = url((VIPS[0], 80).into(), "/?n=1");
    assert_eq!(curl(&scene.bed.client, &vip)?, "s1 1\n");
    scene.agent.cleanup()?;
    assert!(!scene.agent.pin_dir.exists(), "{} is still there", scene.agent.pin_dir.display());
    let links = check(scene.bed.lb.command("ip").args(["-details", "link"]))?;
    assert!(!links.contains("xdp"), "{links}");
    let neighbours = check(scene.bed.lb.command("ip").args(["neigh", "show"]))?;
    assert!(!neighbours.contains("managed"), "the kernel still keeps them resolved: {neighbours}");
    assert_eq!(curl(&scene.bed.client, &url(scene.bed.backend(1, VIPS[0]), "/?n=2"))?, "s1 2\n");
    let gone = output(scene.bed.client.command("curl").args(["--silent", "--max-time", "1", &vip]))?;
    assert!(!gone.status.success());
    Ok(())
}

#[test]
fn metrics_count_what_clients_did() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    let load = scene.load()?;
    seconds(1.0);
    let began = Instant::now();
    let mut connections = 0;
    for family in load {
        let (short, long) = family.stop()?;
        connections += Tally::of(begun_between(&short, began - Duration::from_secs(60), began)).connections;
        connections += long.len() as u64;
    }
    seconds(1.5);
    let metrics = scene.agent.metrics()?;
    let counted: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("weir_service_connections_total{") && line.contains("service_name=\"web\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert!(
        (counted - connections as f64).abs() <= 8.0,
        "clients made {connections}, metrics say {counted}:\n{metrics}"
    );
    Ok(())
}
