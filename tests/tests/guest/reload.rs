//! A good file and a bad one, by `systemctl reload`; a backend out and in again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_userspace::state::Origin;
use weir_tests::{bed::VIPS, http, process::wait_for};

use crate::scene::{MORE_PORT, START, Scene};

const PATIENCE: Duration = Duration::from_secs(60);

const STATUS: &str = "systemctl show weir --property StatusText --value";

pub fn good_and_bad(scene: &mut Scene) -> Result<()> {
    scene.does("reload of a good file: it is in force", |scene| {
        scene.machine.run("cat weir-more.yaml > /etc/weir/weir.yaml && systemctl reload weir")?;
        expect_more(scene)
    })?;
    scene.does("reload of a bad file fails, and what was in force stays", |scene| {
        scene.machine.run("echo 'services: [' > /etc/weir/weir.yaml")?;
        let reload = scene.machine.try_run("systemctl reload weir", PATIENCE)?;
        ensure!(reload.status != 0, "`systemctl reload` says that all is well");
        let status = scene.machine.wait_until(&format!("{STATUS} | grep refused"), PATIENCE)?;
        println!("  Linux {:<5} StatusText: {status}", scene.linux);
        expect_more(scene)?;
        ensure!(scene.unit("ActiveState")? == "active", "the unit is {}", scene.unit("ActiveState")?);
        scene.machine.run("cat weir-more.yaml > /etc/weir/weir.yaml && systemctl reload weir")?;
        scene.wait_in_order()?;
        scene.machine.wait_until(&format!("{STATUS} | grep '^ok: 3 services'"), PATIENCE).map(drop)
    })
}

/// The service that only the second file has is there, and serves.
fn expect_more(scene: &mut Scene) -> Result<()> {
    scene.machine.wait_until("weir get services | grep web-more", PATIENCE)?;
    for vip in VIPS {
        wait_for(&format!("{vip} answers at the new port"), PATIENCE, || {
            let to = SocketAddr::new(vip, MORE_PORT);
            Ok(http::get(&scene.bed.client, to, "/", Duration::from_secs(20))?.status == 200)
        })?;
    }
    Ok(())
}

/// `s2` is taken out in IPv4 through both services, by the documented commands.
pub fn drain(scene: &mut Scene) -> Result<()> {
    scene.does("a drained backend gets no new connection", |scene| {
        scene.machine.run("weir drain 10.2.0.12")?;
        let draining = scene.backends()?.iter().filter(|view| view.admin_from == Origin::Cli).count();
        ensure!(draining == 3, "{draining} backends are drained");
        let then = Instant::now();
        wait_for("new connections through each service", PATIENCE, || {
            Ok(scene.traffic()?.servers_since(then).iter().all(|(_, tally)| tally.connections >= 12))
        })?;
        for (name, tally) in scene.traffic()?.servers_since(then) {
            ensure!(!tally.servers.contains_key("s2"), "{name}: {tally:?}");
        }
        Ok(())
    })?;
    scene.does("undrained it gets connections again", |scene| {
        scene.machine.run("weir undrain 10.2.0.12 --wait --timeout 5m")?;
        let then = Instant::now();
        wait_for("connections to s2", START, || {
            Ok(scene.traffic()?.servers_since(then).iter().all(|(_, tally)| tally.servers.contains_key("s2")))
        })
        .map(drop)
    })
}
