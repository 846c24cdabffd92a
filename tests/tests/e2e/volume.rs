//! A lot of traffic: bytes, connections, and a flood.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    config::AgentConfig,
    flood::syn_flood,
    is_long,
    load::{Load, Spec},
    process::check,
    servers::iperf_server,
    tally::{Tally, expect_no_failure},
    tools::{iperf, sha256_of_file, sha256_of_url, url, wrk},
};

use crate::scene::{HEALTH, Scene, seconds};

#[test]
fn nat_gigabyte_through_one_connection_arrives_intact() -> Result<()> {
    gigabyte_arrives_intact(Layout::Routed)
}

#[test]
fn dsr_l2_gigabyte_through_one_connection_arrives_intact() -> Result<()> {
    gigabyte_arrives_intact(Layout::SharedL2)
}

fn gigabyte_arrives_intact(layout: Layout) -> Result<()> {
    let scene = Scene::new(layout, 2, 2)?;
    // Not in /run, which may be small.
    let file = RemovedFile(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gigabyte-{}", scene.bed.id)));
    // A quarter of it goes over the wire in the same segments; `cargo xtask test --long` sends all.
    let bytes: u64 = if is_long() { 1 << 30 } else { 1 << 28 };
    let script = "head --bytes=\"$1\" /dev/urandom > \"$0\"";
    check(Command::new("bash").args(["-c", script]).arg(&file.0).arg(bytes.to_string()))?;
    symlink(&file.0, scene.bed.dir().join("files/gigabyte")).context("can't link the file")?;
    let wanted = sha256_of_file(&file.0)?;
    for vip in VIPS {
        let got = sha256_of_url(&scene.bed.client, &url((vip, 80).into(), "/files/gigabyte"))?;
        assert_eq!(got, wanted, "{vip}");
    }
    Ok(())
}

struct RemovedFile(std::path::PathBuf);

impl Drop for RemovedFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("warning: can't remove {}: {error}", self.0.display());
        }
    }
}

#[test]
fn nat_common_load_generators_see_no_error() -> Result<()> {
    common_load_generators_see_no_error(Layout::Routed)
}

#[test]
fn dsr_l2_common_load_generators_see_no_error() -> Result<()> {
    common_load_generators_see_no_error(Layout::SharedL2)
}

fn common_load_generators_see_no_error(layout: Layout) -> Result<()> {
    let bed = Bed::new(layout, 2)?;
    let config = AgentConfig::web(&bed, 2, HEALTH).with_iperf(&bed, 2);
    let scene = Scene::with(bed, &config)?;
    let bed = &scene.bed;
    let _iperf = [iperf_server(&bed.dir(), &bed.servers[0])?, iperf_server(&bed.dir(), &bed.servers[1])?];
    for vip in VIPS {
        for keep_alive in [true, false] {
            let result = wrk(&bed.client, &url((vip, 80).into(), "/"), 32, Duration::from_secs(2), keep_alive)?;
            assert!(result.errors == 0 && result.requests > 200, "{vip}, keep-alive {keep_alive}: {result:?}");
        }
        for reverse in [false, true] {
            let rate = iperf(&bed.client, vip, Duration::from_secs(2), reverse)?;
            assert!(rate > 1e7, "{vip}, reverse {reverse}: {rate} bit/s");
        }
    }
    Ok(())
}

#[test]
fn nat_syn_flood_harms_no_established_connection() -> Result<()> {
    syn_flood_harms_no_established_connection(Layout::Routed)
}

#[test]
fn dsr_l2_syn_flood_harms_no_established_connection() -> Result<()> {
    syn_flood_harms_no_established_connection(Layout::SharedL2)
}

fn syn_flood_harms_no_established_connection(layout: Layout) -> Result<()> {
    // NAT_HALF_OPEN has room for 65,536 flows; a service of a DSR mode notes none of them.
    let flows = if is_long() { 300_000 } else { 80_000 };
    const PER_SECOND: u32 = 30_000;
    let scene = Scene::new(layout, 3, 3)?;
    let targets = VIPS.map(|vip| SocketAddr::new(vip, 80));
    let long: Vec<Load> =
        targets.iter().map(|target| Load::start(&scene.bed.client, Spec::long(*target, 30))).collect::<Result<_>>()?;
    seconds(1.0);
    for target in targets {
        for guess_ack in [false, true] {
            let rate = syn_flood(&scene.bed.client, target, flows, guess_ack, PER_SECOND)?;
            eprintln!("flood to {target}: {rate:.0} packets/s");
        }
    }
    seconds(1.0);
    for load in long {
        let records = load.stop()?;
        expect_no_failure(&records)?;
        let tally = Tally::of(&records);
        assert!(tally.connections == 30 && tally.requests > 30 * 50, "{tally:?}");
    }
    Ok(())
}
