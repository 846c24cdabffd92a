//! `limits` that are raised and lowered at restarts, under load.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::MapInfo;
use lb_userspace::{
    dataplane::{image::Image, sizes::UNUSED_TABLE},
    view::types::Overall,
};
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    config::{AgentConfig, Backend, Health, Service},
    http,
    process::wait_for,
    slots::{in_transition, read, unsettled},
};

use crate::scene::{FamilyLoad, HEALTH, Scene, seconds, stop_without_failure};

#[test]
fn nat_maps_grow_and_shrink_at_restarts_without_loss() -> Result<()> {
    maps_grow_and_shrink(Layout::Routed)
}

#[test]
fn dsr_l2_maps_grow_and_shrink_at_restarts_without_loss() -> Result<()> {
    maps_grow_and_shrink(Layout::SharedL2)
}

const SETTLED_WITHIN: Duration = Duration::from_secs(30);
const RAISED: &str = "backends: 65536, ringSlots: 16777216, services: 65536, addresses: 262144";
const LOWERED: &str = "backends: 1024, ringSlots: 32768, services: 1024, addresses: 1024";

/// No connection is lost or moved, and slots, indexes and counters are the same.
fn maps_grow_and_shrink(layout: Layout) -> Result<()> {
    let bed = Bed::new(layout, 3)?;
    let mut config = AgentConfig::web(&bed, 3, HEALTH);
    let mut scene = Scene::with(bed, &config)?;
    let load = scene.load()?;
    let mut counted = connections(&scene)?;
    for (limits, sizes) in [(RAISED, [65_536, 16_777_216, 65_536, 262_144]), (LOWERED, [1024, 32_768, 1024, 1024])] {
        config.limits = Some(limits.to_owned());
        scene.agent.configure(&config)?;
        let said = scene.agent.cli(&["reload"])?;
        ensure!(said.contains("restart") && said.contains("limits"), "the reload says: {said}");
        // Slots that have just begun have flags, which go as they settle.
        wait_for("every slot has settled", SETTLED_WITHIN, || Ok(unsettled(&scene.agent.pin_dir)? == 0))?;
        let (before, slots) = read(&scene.agent.pin_dir)?;
        scene.agent.stop()?;
        scene.agent.start_again()?;
        let (after, slots_after) = read(&scene.agent.pin_dir)?;
        assert_eq!(slots_after, slots);
        assert_eq!(after.services, before.services);
        let places = |image: &Image| -> Vec<_> {
            image.backends.iter().map(|(index, backend)| (*index, backend.address, backend.generation)).collect()
        };
        assert_eq!(places(&after), places(&before));
        let now = connections(&scene)?;
        assert!(now >= counted, "{counted} connections were counted before, {now} are now");
        counted = now;
        let status = scene.agent.status()?;
        for (map, size) in ["BACKENDS", "RINGS", "SERVICES_V4", "ADDRESSES_V6"].into_iter().zip(sizes) {
            let table = status.tables.iter().find(|table| table.map == map).context("no such table")?;
            assert_eq!(table.max_entries, size, "{map}");
        }
        seconds(2.0);
    }
    let log = fs::read_to_string(&scene.agent.log).context("can't read the agent's log")?;
    ensure!(!log.contains("level=error"), "errors in the log:\n{log}");
    stop_without_failure(load)?;

    config.limits = Some("ringSlots: 16384".to_owned());
    scene.agent.configure(&config)?;
    scene.agent.stop()?;
    let said = scene.agent.start_refused()?;
    ensure!(said.contains("limits.ringSlots: allows 16384") && said.contains("32763 are needed"), "{said}");
    Ok(())
}

/// Until then the tables of its mode are small, because no service used them when the agent
/// started, and what its slots say of their time is not saved. Connections that begin while one of
/// its backends has no verdict yet stay where they are when that comes. A service without backends
/// beside them takes nothing down.
#[test]
fn first_dsr_service_is_served_at_once_and_a_restart_makes_room_without_loss() -> Result<()> {
    const DEFAULT: u32 = 131_072;
    /// Longer than a backend without a verdict stays one in this test.
    const PATIENT: Health = Health { fall: 100, ..HEALTH };
    let bed = Bed::new(Layout::SharedL2, 3)?;
    let mut config = AgentConfig::web(&bed, 3, HEALTH);
    let [nat_vip, dsr_vip] = VIPS;
    let web = config.services[0].clone();
    let over = |vip: IpAddr, servers: usize| -> Vec<Backend> {
        web.backends.iter().filter(|one| one.address.is_ipv4() == vip.is_ipv4()).take(servers).cloned().collect()
    };
    let nat = Service { vips: vec![nat_vip], mode: "nat", backends: over(nat_vip, 2), ..web.clone() };
    let empty = Service { name: "empty".to_owned(), port: 81, backends: Vec::new(), ..nat.clone() };
    let added = Service {
        name: "added".to_owned(),
        vips: vec![dsr_vip],
        backends: over(dsr_vip, 3),
        settle_time: Some(Duration::from_secs(2)),
        health: Some(PATIENT),
        ..web.clone()
    };
    config.services = vec![empty, nat];
    let mut scene = Scene::with(bed, &config)?;
    let pin_dir = scene.agent.pin_dir.clone();
    let entries = |name: &str| -> Result<u32> { Ok(MapInfo::from_pin(pin_dir.join(name))?.max_entries()) };
    let has_finding = |scene: &Scene| -> Result<bool> {
        Ok(scene.agent.status()?.findings.iter().any(|finding| finding.check == "map sizes"))
    };
    let eligible = |scene: &Scene| -> Result<usize> {
        Ok(scene.agent.backends()?.iter().filter(|one| one.service == "added" && one.eligible).count())
    };
    assert_eq!(entries("SEEN_V6")?, UNUSED_TABLE);
    ensure!(!has_finding(&scene)?, "nothing is missing yet");
    let status = scene.agent.status()?;
    ensure!(status.state != Overall::Down, "a service without backends is no fault: {:?}", status.reasons);
    let refused = http::get(&scene.bed.client, SocketAddr::new(nat_vip, 81), "/", Duration::from_secs(1));
    ensure!(format!("{:#}", refused.err().context("it was served")?).contains("refused"), "port 81 rejects");
    let mut load = vec![FamilyLoad::start(&scene.bed, nat_vip)?];

    scene.web[2].kill()?;
    config.services.push(added);
    scene.agent.configure(&config)?;
    scene.agent.cli(&["reload"])?;
    wait_for("two backends of the added service are up", SETTLED_WITHIN, || Ok(eligible(&scene)? == 2))?;
    load.push(FamilyLoad::start(&scene.bed, dsr_vip)?);
    // The settle task has passes meanwhile.
    seconds(1.5);
    scene.web[2].restart()?;
    wait_for("the third is up", SETTLED_WITHIN, || Ok(eligible(&scene)? == 3))?;
    wait_for("the agent says that a restart makes room", SETTLED_WITHIN, || has_finding(&scene))?;
    let one_owner = |scene: &Scene| -> Result<bool> { Ok(in_transition(&scene.agent.pin_dir)?.1 == 0) };
    wait_for("every slot has one owner again", SETTLED_WITHIN, || one_owner(&scene))?;

    // Slots are in transition as the agent restarts.
    config.services[2].backends[0].weight = 3;
    scene.agent.configure(&config)?;
    scene.agent.cli(&["reload"])?;
    ensure!(!one_owner(&scene)?, "no slot has changed its owner");
    scene.agent.stop()?;
    scene.agent.start_again()?;
    assert_eq!([entries("SEEN_V6")?, entries("HALF_OPEN_V4")?], [DEFAULT; 2]);
    ensure!(!has_finding(&scene)?, "the restart has made room");
    wait_for("every slot has one owner again", SETTLED_WITHIN, || one_owner(&scene))?;
    stop_without_failure(load)
}

/// Connections that were counted, in all.
fn connections(scene: &Scene) -> Result<u64> {
    let metrics = scene.agent.metrics()?;
    let counted = metrics.lines().filter(|line| line.starts_with("weir_service_connections_total{"));
    Ok(counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}
