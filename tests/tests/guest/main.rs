//! Weir where its README says that it runs: installed by the commands of docs/operations.md on
//! Debian 12 with systemd, under the shipped unit, on the kernels that this machine does not have;
//! traffic in both families through both kinds of modes all the while. Needs root.

mod install;
mod life;
mod packets;
mod reload;
mod scene;
mod traffic;

use anyhow::Result;

use crate::scene::Scene;

#[test]
fn debian_12_with_its_own_linux_6_1() -> Result<()> {
    runs_where_it_was_installed("6.1")
}

#[test]
fn debian_12_with_linux_6_12_of_debian_13() -> Result<()> {
    runs_where_it_was_installed("6.12")
}

fn runs_where_it_was_installed(linux: &'static str) -> Result<()> {
    let mut scene = Scene::boot(linux)?;
    install::install(&mut scene)?;
    scene.begin_traffic()?;
    life::restart(&mut scene)?;
    life::kill(&mut scene)?;
    life::watchdog(&mut scene)?;
    reload::good_and_bad(&mut scene)?;
    reload::drain(&mut scene)?;
    life::filter(&mut scene)?;
    install::upgrade(&mut scene)?;
    scene.end_traffic()?;
    life::reboot(&mut scene)?;
    install::remove(&mut scene)?;
    packets::judge_every_packet(&mut scene)?;
    scene.end()
}
