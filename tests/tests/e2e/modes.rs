//! Other settings than those of most tests: the client's address kept, a server on the balancer
//! itself, generic XDP, disabled servers.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::Result;
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIP_V4, VIPS},
    config::{AgentConfig, Backend},
    load::Outcome,
    process::wait_for,
    servers::Nginx,
    tally::{Tally, begun_between, expect_no_failure},
    tools::{curl, sha256_of_file, sha256_of_url, url},
    witness::Witness,
};

use crate::scene::{HEALTH, Scene, seconds, stop_without_failure};

/// The addresses of the client, and of the balancer on the servers' network, by family of the VIP.
fn client_and_balancer(vip: std::net::IpAddr) -> [&'static str; 2] {
    if vip == VIP_V4 { ["10.1.0.2", "10.2.0.1"] } else { ["fd01::2", "fd02::1"] }
}

#[test]
fn nat_server_sees_the_balancer_unless_the_source_is_kept() -> Result<()> {
    for source in ["translate", "keep"] {
        let bed = Bed::new(Layout::Routed, 2)?;
        let mut config = AgentConfig::web(&bed, 2, HEALTH);
        config.services[0].source = source;
        let scene = Scene::with(bed, &config)?;
        let load = scene.load()?;
        for vip in VIPS {
            let [client, balancer] = client_and_balancer(vip);
            let seen = curl(&scene.bed.client, &url((vip, 80).into(), "/who"))?;
            assert_eq!(seen.trim(), if source == "keep" { client } else { balancer }, "{vip}, source: {source}");
        }
        seconds(2.0);
        stop_without_failure(load).map_err(|error| error.context(format!("source: {source}")))?;
    }
    Ok(())
}

#[test]
fn nat_server_on_the_balancer_itself_sees_the_client() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 1)?;
    let local = Nginx::start(&bed.dir(), &bed.lb, 9)?;
    let mut config = AgentConfig::web(&bed, 0, HEALTH);
    config.services[0].backends =
        VIPS.iter().map(|vip| Backend::new(SocketAddr::new(address(client_and_balancer(*vip)[1]), 8080))).collect();
    let scene = Scene { agent: Agent::start(&bed, &config)?, web: vec![local], witness: Witness::start(&bed)?, bed };
    scene.agent.wait_all_up()?;
    let load = scene.load()?;
    for vip in VIPS {
        let [client, _] = client_and_balancer(vip);
        assert_eq!(curl(&scene.bed.client, &url((vip, 80).into(), "/who"))?.trim(), client, "{vip}");
        assert_eq!(curl(&scene.bed.client, &url((vip, 80).into(), "/?n=5"))?, "s9 5\n", "{vip}");
    }
    seconds(2.0);
    stop_without_failure(load)
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().expect("written here")
}

#[test]
fn nat_works_with_generic_xdp() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 2)?;
    let mut config = AgentConfig::web(&bed, 2, HEALTH);
    config.xdp_mode = "generic";
    let scene = Scene::with(bed, &config)?;
    let links = weir_tests::process::check(scene.bed.lb.command("ip").args(["link"]))?;
    assert!(links.contains("xdpgeneric"), "{links}");
    let file = scene.bed.dir().join("files/large");
    let script = "head --bytes=64M /dev/urandom > \"$0\"";
    weir_tests::process::check(Command::new("bash").args(["-c", script]).arg(&file))?;
    let load = scene.load()?;
    for vip in VIPS {
        let got = sha256_of_url(&scene.bed.client, &url((vip, 80).into(), "/files/large"))?;
        assert_eq!(got, sha256_of_file(&file)?, "{vip}");
    }
    seconds(2.0);
    stop_without_failure(load)
}

#[test]
fn nat_disabled_server_loses_its_connections_at_once_and_others_none() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 3, 3)?;
    let load = scene.load()?;
    let mut config = AgentConfig::web(&scene.bed, 3, HEALTH);
    for backend in &mut config.services[0].backends {
        if scene.backends(3).contains(&backend.address) {
            backend.state = "disabled";
        }
    }
    let began = std::time::Instant::now();
    scene.agent.configure(&config)?;
    wait_for("s3 is disabled", Duration::from_secs(10), || {
        let disabled = |address| Ok::<_, anyhow::Error>(!scene.agent.backend(address)?.eligible);
        scene.backends(3).into_iter().map(disabled).try_fold(true, |all, one| Ok(all && one?))
    })?;
    let disabled_at = std::time::Instant::now();
    seconds(2.0);
    for family in load {
        let vip = family.vip;
        let (short, long) = family.stop()?;
        let after = Tally::of(begun_between(&short, disabled_at, std::time::Instant::now()));
        assert!(after.failures == 0 && !after.servers.contains_key("s3"), "{vip}: {after:?}");
        let (of_s3, others): (Vec<_>, Vec<_>) =
            long.into_iter().partition(|record| record.server.as_deref() == Some("s3"));
        expect_no_failure(&others)?;
        assert!(!of_s3.is_empty(), "{vip}: no long connection was at s3");
        for record in of_s3 {
            assert_eq!(record.outcome, Outcome::Reset, "{vip}: {record:?}");
            let took = record.ended.unwrap_or(began).saturating_duration_since(disabled_at);
            assert!(took < Duration::from_secs(1), "{vip}: {record:?}");
        }
    }
    Ok(())
}

#[test]
fn service_with_client_affinity_keeps_a_client_at_one_server() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 3)?;
    let mut config = AgentConfig::web(&bed, 3, HEALTH);
    config.services[0].affinity = "client-ip";
    let scene = Scene::with(bed, &config)?;
    let load = scene.load()?;
    seconds(2.0);
    for family in load {
        let vip = family.vip;
        let (short, long) = family.stop()?;
        let tally = Tally::of(short.iter().chain(&long));
        assert!(tally.servers.len() == 1 && tally.failures == 0 && tally.connections > 50, "{vip}: {tally:?}");
    }
    Ok(())
}
