//! Checks that concern all services together.

use std::collections::BTreeMap;

use super::{fields::Value, limits, service::ReadService};
use crate::model::{
    Service, Snat,
    together::{Claims, Conflict, Server, Together, Why},
};

/// Runs all checks, and returns the services sorted by name. Mistakes are recorded at the position
/// of the value.
pub fn services(
    read: Vec<ReadService<'_>>,
    snat_at: Option<&Value<'_>>,
    snat: Option<&Snat>,
    limits: Option<&limits::ReadLimits<'_>>,
) -> Option<Vec<Service>> {
    unique_names(&read);
    let snat_at = snat_at.and_then(|at| Some((at, snat?)));
    let mut together =
        Together::new(snat_at.into_iter().flat_map(|(at, snat)| snat.addresses.iter().map(move |one| (*one, at))));
    for conflict in read.iter().flat_map(|one| together.add(&claims(one))).collect::<Vec<_>>() {
        let Conflict { at, why } = conflict;
        let place = match &why {
            Why::Served { first, .. } => format!(", in line {}", first.at.line),
            Why::BackendIsVip { .. } | Why::TunnelIsVip { .. } | Why::SnatIsVip { .. } => String::new(),
        };
        at.problem::<()>(format!("{why}{place}"));
    }
    if let Some(limits) = limits {
        limits::check(limits, &read, snat);
    }
    let mut services: Vec<Service> = read.into_iter().map(|read| read.service).collect::<Option<_>>()?;
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Some(services)
}

fn unique_names(read: &[ReadService<'_>]) {
    let mut lines = BTreeMap::new();
    for (name, at) in read.iter().filter_map(|one| one.name.as_ref()) {
        if let Some(line) = lines.insert(name.as_str(), at.at.line) {
            at.problem::<()>(format!("the service in line {line} is named {name} too"));
        }
    }
}

fn claims<'r, 'v>(read: &'r ReadService<'v>) -> Claims<&'r Value<'v>> {
    let servers =
        read.backends.iter().map(|(backend, at)| Server { address: backend.address.ip(), tunnel: backend.tunnel, at });
    Claims {
        name: read.label().to_owned(),
        port: read.port,
        vips: read.vips.iter().map(|(vip, at)| (*vip, at)).collect(),
        backends: servers.collect(),
    }
}
