//! Changes that would move every connection of a running service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use super::{
    config::Config,
    seed::Seed,
    service::{Affinity, Service},
};

/// A change that a reload refuses unless the caller accepts the loss of connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incompatible {
    /// As in `services.web.ringSize`.
    pub key: String,
    pub reason: String,
}

impl fmt::Display for Incompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// The changes in `new` by which running services would lose their connections.
///
/// The seeds are the effective ones: the file's, or the one in the state directory. Two services
/// are the same if they have the same name, or if they serve a common VIP and port under different
/// names.
pub fn incompatible(running: &Config, running_seed: &Seed, new: &Config, new_seed: &Seed) -> Vec<Incompatible> {
    let mut found = Vec::new();
    let running = Running::new(running);
    let pairs: Vec<(&Service, &Service)> =
        new.services.iter().flat_map(|to| running.predecessors(to).map(move |from| (from, to))).collect();
    if running_seed != new_seed && !pairs.is_empty() {
        found.push(Incompatible { key: "hashSeed".to_owned(), reason: refusal("another seed", "every service") });
    }
    for (from, to) in pairs {
        let service =
            if from.name == to.name { from.name.to_string() } else { format!("{} (now {})", from.name, to.name) };
        found.extend(changes(from, to).into_iter().map(|(key, change)| Incompatible {
            key: format!("services.{}.{key}", to.name),
            reason: refusal(&change, &format!("service {service}")),
        }));
    }
    found
}

/// The changes by which a running service would lose its connections: for each, the key and a
/// description.
pub fn changes(from: &Service, to: &Service) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut note = |key, from: &dyn fmt::Display, to: &dyn fmt::Display| {
        found.push((key, format!("a change from {from} to {to}")));
    };
    if from.mode != to.mode {
        note("mode", &from.mode.name(), &to.mode.name());
    }
    if from.ring_size != to.ring_size {
        note("ringSize", &from.ring_size, &to.ring_size);
    }
    if from.affinity != to.affinity {
        note("affinity", &affinity(from.affinity), &affinity(to.affinity));
    }
    found
}

/// The running services, to find those that a service takes over.
pub struct Running<'a> {
    config: &'a Config,
    by_vip: BTreeMap<SocketAddr, usize>,
}

impl<'a> Running<'a> {
    pub fn new(config: &'a Config) -> Self {
        let served = |(at, service): (usize, &'a Service)| service.served().map(move |vip| (vip, at));
        Self { config, by_vip: (0..).zip(&config.services).flat_map(served).collect() }
    }

    /// The services whose connections `to` takes over: the one of the same name, and those that
    /// serve its VIPs on its port.
    pub fn predecessors(&self, to: &Service) -> impl Iterator<Item = &'a Service> + use<'a> {
        let services = &self.config.services;
        let named = services.binary_search_by(|from| from.name.cmp(&to.name)).ok();
        let same: BTreeSet<usize> = to.served().filter_map(|vip| self.by_vip.get(&vip).copied()).chain(named).collect();
        same.into_iter().filter_map(|at| services.get(at))
    }
}

const fn affinity(affinity: Affinity) -> &'static str {
    match affinity {
        Affinity::None => "none",
        Affinity::ClientIp => "client-ip",
    }
}

fn refusal(change: &str, what: &str) -> String {
    format!("{change} would move or end every connection of {what}; if that may be, `weir reload --accept-loss`")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SEED: Seed = [1; 16];

    fn config(name: &str, vip: &str, ring: u32, affinity: &str) -> Config {
        let text = format!(
            "version: 1\ninterfaces: [eth0]\nservices:\n  - {{ name: {name}, vips: [{vip}], port: 80, ringSize: \
            {ring}, affinity: {affinity}, backends: [{{ address: 10.0.0.1, port: 80 }}] }}\n"
        );
        crate::config::parse(&text, Path::new("weir.yaml")).unwrap()
    }

    fn dsr(name: &str, vip: &str) -> Config {
        let mut config = config(name, vip, 1021, "none");
        config.services[0].mode = crate::model::Mode::DsrL2;
        config
    }

    #[test]
    fn changes_that_move_connections_are_named_with_the_way_to_force_them() {
        let running = config("web", "192.0.2.1", 1021, "none");
        for (name, new, seed, keys) in [
            ("nothing", config("web", "192.0.2.1", 1021, "none"), SEED, vec![]),
            ("seed", config("web", "192.0.2.1", 1021, "none"), [2; 16], vec!["hashSeed"]),
            ("ring", config("web", "192.0.2.1", 1031, "none"), SEED, vec!["services.web.ringSize"]),
            ("affinity", config("web", "192.0.2.1", 1021, "client-ip"), SEED, vec!["services.web.affinity"]),
            ("mode", dsr("web", "192.0.2.1"), SEED, vec!["services.web.mode"]),
            (
                "ring under another name",
                config("shop", "192.0.2.1", 1031, "none"),
                SEED,
                vec!["services.shop.ringSize"],
            ),
            ("ring with another vip", config("web", "192.0.2.2", 1031, "none"), SEED, vec!["services.web.ringSize"]),
            ("another service", config("shop", "192.0.2.2", 1031, "client-ip"), [2; 16], vec![]),
        ] {
            let found = incompatible(&running, &SEED, &new, &seed);
            assert_eq!(found.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), keys, "{name}");
            assert!(found.iter().all(|one| one.reason.contains("`weir reload --accept-loss`")), "{name}");
        }
    }
}
