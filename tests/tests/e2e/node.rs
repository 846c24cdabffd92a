//! The machine changes under the agent: routes, rules, neighbours.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use weir_tests::{
    bed::{Layout, VIPS},
    netns::Netns,
    process::{check, wait_for},
    tools::{curl, url},
};

use crate::scene::Scene;

/// Less than the agent's slow poll, by far.
const SOON: Duration = Duration::from_secs(2);

/// Waits until the balancer's kernel keeps the entry of `neighbour` resolved, or no longer does.
fn wait_kept(lb: &Netns, neighbour: IpAddr, is_kept: bool, after: &str) -> Result<()> {
    let what = format!("{neighbour} is {}kept after `{after}`", if is_kept { "" } else { "no longer " });
    wait_for(&what, SOON, || {
        let shown = check(lb.command("ip").args(["neigh", "show", &neighbour.to_string()]))?;
        Ok(shown.contains("managed") == is_kept)
    })?;
    Ok(())
}

#[test]
fn changes_of_routes_rules_and_neighbours_are_followed_at_once() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    let lb = &scene.bed.lb;
    let [v4, v6] = scene.backends(1).map(|backend| backend.ip());
    for backend in [v4, v6] {
        wait_kept(lb, backend, true, "start")?;
    }
    for command in
        [format!("neigh del {v4} dev eth1"), format!("neigh del {v6} dev eth1"), "neigh flush dev eth1".into()]
    {
        lb.ip(&command)?;
        for backend in [v4, v6] {
            wait_kept(lb, backend, true, &command)?;
        }
    }
    // Servers behind a gateway that does not exist, for a moment.
    for (add, remove, backend, gateway) in [
        (format!("route add {v4}/32 via 10.2.0.99"), format!("route del {v4}/32"), v4, "10.2.0.99"),
        (format!("-6 route add {v6}/128 via fd02::99"), format!("-6 route del {v6}/128"), v6, "fd02::99"),
        (
            format!("route add {v4}/32 via 10.2.0.98 table 7\nrule add to {v4} table 7"),
            format!("rule del to {v4} table 7"),
            v4,
            "10.2.0.98",
        ),
    ] {
        let gateway = gateway.parse()?;
        lb.ip(&add)?;
        wait_kept(lb, gateway, true, &add)?;
        wait_kept(lb, backend, false, &add)?;
        lb.ip(&remove)?;
        wait_kept(lb, gateway, false, &remove)?;
        wait_kept(lb, backend, true, &remove)?;
    }
    for number in 0..2 {
        let answer = curl(&scene.bed.client, &url((VIPS[0], 80).into(), &format!("/?n={number}")))?;
        assert!(answer.starts_with('s'), "{answer}");
    }
    Ok(())
}
