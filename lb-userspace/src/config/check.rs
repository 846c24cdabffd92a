//! Checks that concern all services together.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{fields::Value, limits, service::Read};
use crate::model::{Service, Snat};

/// Runs all checks, and returns the services sorted by name. Mistakes are recorded at the position
/// of the value.
pub fn services(
    read: Vec<Read<'_>>,
    snat_at: Option<&Value<'_>>,
    snat: Option<&Snat>,
    limits: Option<&limits::Read<'_>>,
) -> Option<Vec<Service>> {
    unique_names(&read);
    let vips = unique_vips(&read);
    no_loops(&read, &vips);
    if let (Some(snat), Some(at)) = (snat, snat_at) {
        for address in snat.addresses.iter().filter(|address| vips.contains_key(address)) {
            at.problem::<()>(format!("{address} is a VIP: replies to it could not be told from clients' connections"));
        }
    }
    if let Some(limits) = limits {
        limits::check(limits, &read, snat);
    }
    let mut services: Vec<Service> = read.into_iter().map(|read| read.service).collect::<Option<_>>()?;
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Some(services)
}

fn unique_names(read: &[Read<'_>]) {
    let mut lines = BTreeMap::new();
    for (name, at) in read.iter().filter_map(|one| one.name.as_ref()) {
        if let Some(line) = lines.insert(name.as_str(), at.at.line) {
            at.problem::<()>(format!("the service in line {line} is named {name} too"));
        }
    }
}

/// Every VIP, with the service that named it first.
fn unique_vips<'r>(read: &'r [Read<'_>]) -> BTreeMap<IpAddr, &'r str> {
    let mut taken: BTreeMap<SocketAddr, (&str, usize)> = BTreeMap::new();
    let mut vips = BTreeMap::new();
    for one in read {
        for (vip, at) in &one.vips {
            vips.entry(*vip).or_insert(one.label());
            let Some(port) = one.port else { continue };
            let served = SocketAddr::new(*vip, port);
            if let Some((name, line)) = taken.insert(served, (one.label(), at.at.line)) {
                at.problem::<()>(format!("{served} is served by service {name} already, in line {line}"));
            }
        }
    }
    vips
}

/// A backend that is a VIP would be balanced again, or its packets would never reach a server.
fn no_loops(read: &[Read<'_>], vips: &BTreeMap<IpAddr, &str>) {
    for one in read {
        for (backend, at) in &one.backends {
            let address = backend.address.ip();
            if let Some(name) = vips.get(&address) {
                at.problem::<()>(format!("{address} is a VIP of service {name}; name the server's own address"));
            }
            if let Some((tunnel, name)) = backend.tunnel.and_then(|tunnel| Some((tunnel, vips.get(&tunnel)?))) {
                at.problem::<()>(format!("the tunnel {tunnel} is a VIP of service {name}: a tunnel ends at a server"));
            }
        }
    }
}
