//! Checks the routes to the backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    finding::{error, ok, warning},
    neighbours,
};
use crate::{
    model::{Config, Mode, Service},
    node::{
        interfaces::{Interface, Netlink, NetlinkError, matching},
        neighbours::NextHop,
    },
    view::types::Finding,
};

pub(super) async fn findings(
    config: &Config,
    interfaces: &BTreeMap<u32, Interface>,
    netlink: &Netlink,
) -> Result<Vec<Finding>, NetlinkError> {
    let ours: BTreeSet<u32> = matching(interfaces, &config.node.interfaces).0.iter().map(|link| link.index).collect();
    let name = |ifindex: u32| interfaces.get(&ifindex).map_or("an interface that is gone", |link| link.name.as_str());
    let mut findings = Vec::new();
    let mut next_hops: BTreeMap<NextHop, String> = BTreeMap::new();
    let backends = backends(config);
    let routes = netlink.routes_to(&backends.iter().map(|(_, address)| *address).collect()).await?;
    for (service, address) in backends {
        let check = format!("backend {}/{address}", service.name);
        let Some(route) = routes.get(&address) else {
            findings.push(error(check, format!("no route to {address}"), format!("ip route add {address} ...")));
            continue;
        };
        let is_direct = service.mode == Mode::DsrL2;
        if route.is_local {
            if is_direct {
                let message = format!("{address} is an address of this node, which `dsr-l2` cannot send to");
                findings.push(error(check, message, "use mode `nat`"));
            }
            continue;
        }
        if is_direct && route.gateway.is_some() {
            findings.push(error(
                check,
                format!("{address} is behind a router, and `dsr-l2` reaches only what is on the link (not_on_link)"),
                "use mode `dsr-ipip` or `nat`, or put the balancer on the backend's network",
            ));
            continue;
        }
        if service.uses_snat() && !ours.contains(&route.ifindex) {
            let out = name(route.ifindex);
            findings.push(error(
                check,
                format!("{address} is reached through {out}, without Weir: its answers would not be translated"),
                format!("add {out} to `interfaces`"),
            ));
            continue;
        }
        next_hops.entry((route.ifindex, route.next_hop(address))).or_insert(check);
    }
    let all: BTreeSet<NextHop> = next_hops.keys().copied().collect();
    findings.extend(neighbours::findings(&all, netlink).await?);
    let unresolved = netlink.unresolved(&all).await?;
    for (next_hop, check) in next_hops {
        let (ifindex, address) = next_hop;
        let out = name(ifindex);
        findings.push(if unresolved.contains(&next_hop) {
            let message = format!(
                "the next hop {address} on {out} is not resolved: nothing answers, or nothing was sent there yet"
            );
            warning(check, message, format!("ping -I {out} {address}"))
        } else {
            ok(check, format!("reached by {address} on {out}"))
        });
    }
    Ok(findings)
}

/// Each address to which a service sends packets, once per service.
fn backends(config: &Config) -> Vec<(&Service, IpAddr)> {
    let addresses = |service: &Service| {
        let to = service.backends.iter().map(|backend| backend.tunnel.unwrap_or(backend.address.ip()));
        to.collect::<BTreeSet<IpAddr>>()
    };
    config.services.iter().flat_map(|service| addresses(service).into_iter().map(move |ip| (service, ip))).collect()
}
