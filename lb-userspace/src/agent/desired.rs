//! A pure function from the configuration, the overrides, the health and the node to the desired
//! contents of the maps.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use lb_common::{
    flow::Family,
    hash::HashKey,
    nat::NatTimeouts,
    ports::PortPool,
    settings::{LAYOUT, Settings},
};

use super::node::Node;
use crate::{
    balance::{Declared, Ring, eligible::is_eligible},
    dataplane::plan::{TunnelEnds, Wanted, WantedBackend, WantedService},
    model::{Backend, Config, Limits, Mode, Service, Timeouts, seed::Seed},
    overrides::{Overrides, effective},
    state::{AdminState, BackendId, Health, ServiceName},
};

/// The state that the operator wants.
#[derive(Clone, Debug)]
pub struct Desired {
    pub config: Arc<Config>,
    /// The limits with which the agent was started, from which its maps have their sizes. Other
    /// limits in `config` take effect at a restart.
    pub limits: Limits,
    /// Whether some source has not told its services yet. Services in the maps that nobody declares
    /// are then kept, because they may belong to that source.
    pub holds: bool,
    pub seed: Seed,
    pub overrides: Overrides,
    /// When the desired state last changed, in CLOCK_BOOTTIME.
    pub since_ns: u64,
    /// Whether any client traces the decisions of the BPF programs.
    pub is_traced: bool,
}

impl Desired {
    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.config.service(name)
    }

    /// See [`Config::backend`].
    pub fn backend(&self, id: &BackendId) -> Option<&Backend> {
        self.config.backend(id)
    }
}

/// The known health of each backend, and since when, in nanoseconds since 1970 (0 if it has never
/// changed).
pub type HealthOf = BTreeMap<BackendId, (Health, u64)>;

/// Cache of the built rings: a health event needs no new ring.
#[derive(Debug, Default)]
pub struct RingCache(BTreeMap<(ServiceName, Family), Arc<Ring>>);

impl RingCache {
    /// The rings of these services.
    pub fn of(config: Arc<Config>, seed: Seed, overrides: Overrides) -> Self {
        let limits = config.node.limits;
        let desired = Desired { config, limits, holds: false, seed, overrides, since_ns: 0, is_traced: false };
        let mut rings = Self::default();
        drop(wanted(&desired, &HealthOf::new(), &Node::default(), &mut rings));
        rings
    }

    fn ring(&mut self, service: &ServiceName, family: Family, declared: Declared) -> Arc<Ring> {
        let key = (service.clone(), family);
        if let Some(ring) = self.0.get(&key).filter(|ring| *ring.declared() == declared) {
            return ring.clone();
        }
        let ring = Arc::new(Ring::new(declared));
        self.0.insert(key, ring.clone());
        ring
    }

    fn retain(&mut self, config: &Config) {
        self.0.retain(|(name, _), _| config.service(name).is_some());
    }
}

pub fn wanted(desired: &Desired, health: &HealthOf, node: &Node, rings: &mut RingCache) -> Wanted {
    let config = &desired.config;
    rings.retain(config);
    let services =
        config.services.iter().map(|service| wanted_service(service, desired, health, node, rings).into()).collect();
    Wanted {
        settings: settings(desired),
        limits: desired.limits,
        services,
        holds: desired.holds,
        node_addresses: node.addresses(),
        peers: config.node.tunnel.peers.iter().copied().collect(),
        ways_out: node.ways_out.clone(),
        since_ns: desired.since_ns,
    }
}

pub fn nat_timeouts(timeouts: &Timeouts) -> NatTimeouts {
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    NatTimeouts {
        half_open_ns: nanoseconds(timeouts.half_open),
        established_ns: nanoseconds(timeouts.established),
        closing_ns: nanoseconds(timeouts.closing),
    }
}

fn settings(desired: &Desired) -> Settings {
    let config = &desired.config;
    let [a, b, c, d, ..] = desired.seed;
    Settings {
        hash_key: HashKey::from_seed(desired.seed),
        nat_timeouts: nat_timeouts(&config.node.timeouts),
        ports: PortPool::new(config.node.snat.ports.iter().copied(), u32::from_le_bytes([a, b, c, d])),
        flags: if desired.is_traced { Settings::FLAG_TRACE } else { 0 },
        layout: LAYOUT,
        vary_source_v4: config.node.tunnel.source.iter().fold(0, |vary, source| vary | vary_v4(source)),
        vary_source_v6: config.node.tunnel.source.iter().fold(0, |vary, source| vary | vary_v6(source)),
    }
}

/// Mask of the bits after an IPv4 prefix, in network byte order; 0 for an IPv6 prefix.
fn vary_v4(prefix: &IpNet) -> u32 {
    let behind = u32::MAX.checked_shr(prefix.prefix_len().into()).unwrap_or(0);
    if prefix.addr().is_ipv4() { behind.to_be() } else { 0 }
}

/// Mask of the bits after an IPv6 prefix within the last 32-bit word, in network byte order; 0 for
/// an IPv4 prefix.
fn vary_v6(prefix: &IpNet) -> u32 {
    let behind = u32::MAX.checked_shr(u32::from(prefix.prefix_len().saturating_sub(96))).unwrap_or(0);
    if prefix.addr().is_ipv6() { behind.to_be() } else { 0 }
}

/// What the maps should hold for one service.
pub fn wanted_service(
    service: &Service,
    desired: &Desired,
    health: &HealthOf,
    node: &Node,
    rings: &mut RingCache,
) -> WantedService {
    let mut backends = Vec::new();
    let mut weights = Vec::new();
    for backend in &service.backends {
        let id = BackendId { service: service.name.clone(), address: backend.address };
        let set = effective(backend, desired.overrides.of(&id));
        let (seen, since) = match &service.health {
            Some(_) => health.get(&id).copied().unwrap_or_default(),
            None => (Health::Unknown, 0),
        };
        let ip = backend.address.ip();
        let is_local = backend.is_here || node.routes.get(&ip).is_some_and(|route| route.is_local);
        weights.push((backend.address, set.weight));
        backends.push(WantedBackend {
            address: backend.address,
            admin: set.admin,
            health: seen,
            health_since_unix_ns: since,
            is_eligible: is_eligible(set.weight, set.admin, seen, service.health.is_some()),
            is_local,
            tunnel: (service.mode == Mode::DsrIpip)
                .then(|| tunnel(backend.tunnel.unwrap_or(ip), &desired.config, node)),
            snat: if service.uses_snat() && !is_local { snat(ip, &desired.config, node) } else { Vec::new() },
        });
    }
    let families: Vec<Family> =
        Family::BOTH.into_iter().filter(|family| service.vips.iter().any(|vip| Family::of(vip) == *family)).collect();
    let ring = |family: Family| {
        let of_family = weights.iter().filter(|(address, _)| Family::of(&address.ip()) == family).copied();
        let declared = Declared::new(desired.seed, service.ring_size, of_family);
        (family, rings.ring(&service.name, family, declared))
    };
    WantedService {
        name: service.name.clone(),
        vips: service.vips.clone(),
        port: service.port,
        mode: service.mode,
        keeps_source: service.keeps_source(),
        affinity: service.affinity,
        drain_timeout: service.drain_timeout,
        settle_time: service.settle_time,
        on_dead: service.on_dead,
        rings: families.into_iter().map(ring).collect(),
        backends,
        gone: service.gone.clone(),
    }
}

/// The tunnel to `to`. Its source comes from a configured prefix, or else is the address from which
/// the node reaches the tunnel endpoint.
fn tunnel(to: IpAddr, config: &Config, node: &Node) -> TunnelEnds {
    let mut configured = config.node.tunnel.source.iter().map(|prefix| prefix.addr());
    let source = configured
        .find(|source| source.is_ipv4() == to.is_ipv4())
        .or_else(|| node.routes.get(&to).and_then(|route| route.source));
    TunnelEnds { to, source }
}

/// The SNAT addresses for a backend: the configured addresses of its family, or else the address
/// from which the node reaches it.
fn snat(backend: IpAddr, config: &Config, node: &Node) -> Vec<IpAddr> {
    let family = Family::of(&backend);
    let configured: Vec<IpAddr> =
        config.node.snat.addresses.iter().copied().filter(|address| Family::of(address) == family).collect();
    if configured.is_empty() {
        node.routes.get(&backend).and_then(|route| route.source).into_iter().collect()
    } else {
        configured
    }
}

/// Whether every backend has a health verdict or needs none.
pub fn is_judged(desired: &Desired, health: &HealthOf) -> bool {
    desired.config.services.iter().all(|service| are_judged(service, desired, health))
}

/// Whether every backend of `service` has a health verdict or needs none.
pub fn are_judged(service: &Service, desired: &Desired, health: &HealthOf) -> bool {
    service.health.is_none()
        || service.backends.iter().all(|backend| {
            let id = BackendId { service: service.name.clone(), address: backend.address };
            effective(backend, desired.overrides.of(&id)).admin != AdminState::Active
                || health.get(&id).is_some_and(|(health, _)| *health != Health::Unknown)
        })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::node::routes::Route;

    fn desired(service: &str) -> Desired {
        let text = format!(
            "version: 1\ninterfaces: [eth0]\nservices:\n  - {{ name: web, vips: [192.0.2.1, \"2001:db8::1\"], port: \
            80, {service}, backends: [{{ address: 10.0.0.1, port: 80 }}, {{ address: 10.0.0.2, port: 80, state: \
            draining }}, {{ address: \"fd02::1\", port: 80 }}] }}\n"
        );
        let config = crate::config::parse(&text, Path::new("weir.yaml")).unwrap();
        Desired {
            config: Arc::new(config),
            limits: Limits::default(),
            holds: false,
            seed: [1; 16],
            overrides: Overrides::default(),
            since_ns: 1,
            is_traced: false,
        }
    }

    fn id(address: &str) -> BackendId {
        BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() }
    }

    fn eligible(wanted: &Wanted) -> Vec<String> {
        let backends = wanted.services[0].backends.iter().filter(|backend| backend.is_eligible);
        backends.map(|backend| backend.address.to_string()).collect()
    }

    const PROBED: &str = "health: { tcp: {} }";

    #[test]
    fn without_probes_every_active_backend_gets_flows_and_with_them_those_that_are_up() {
        let node = Node::default();
        let mut rings = RingCache::default();
        let all = wanted(&desired("mode: nat"), &HealthOf::new(), &node, &mut rings);
        assert_eq!(eligible(&all), ["10.0.0.1:80", "[fd02::1]:80"]);
        let mut health = HealthOf::new();
        assert_eq!(eligible(&wanted(&desired(PROBED), &health, &node, &mut rings)), Vec::<String>::new());
        health.insert(id("[fd02::1]:80"), (Health::Up, 7));
        health.insert(id("10.0.0.1:80"), (Health::Down, 8));
        assert_eq!(eligible(&wanted(&desired(PROBED), &health, &node, &mut rings)), ["[fd02::1]:80"]);
    }

    #[test]
    fn change_of_health_builds_no_ring_and_a_change_of_weight_builds_one() {
        let (node, mut rings) = (Node::default(), RingCache::default());
        let mut desired = desired(PROBED);
        let ring = |wanted: &Wanted| wanted.services[0].rings[&Family::V4].clone();
        let before = ring(&wanted(&desired, &HealthOf::new(), &node, &mut rings));
        let health = HealthOf::from([(id("10.0.0.1:80"), (Health::Up, 1))]);
        assert!(Arc::ptr_eq(&before, &ring(&wanted(&desired, &health, &node, &mut rings))));
        desired.overrides.set_weight(&id("10.0.0.1:80"), Some(5));
        assert!(!Arc::ptr_eq(&before, &ring(&wanted(&desired, &health, &node, &mut rings))));
    }

    #[test]
    fn snat_uses_the_address_towards_the_backend_and_none_where_the_source_is_kept_or_the_backend_is_here() {
        let mut node = Node { is_known: true, ..Node::default() };
        let route = |is_local| Route { ifindex: 2, gateway: None, source: Some("10.0.0.9".parse().unwrap()), is_local };
        node.routes.insert("10.0.0.1".parse().unwrap(), route(false));
        node.routes.insert("10.0.0.2".parse().unwrap(), route(true));
        let snat = |service: &str, at: usize| {
            let wanted = wanted(&desired(service), &HealthOf::new(), &node, &mut RingCache::default());
            let backend = &wanted.services[0].backends[at];
            (backend.snat.iter().map(ToString::to_string).collect::<Vec<_>>(), backend.is_local)
        };
        assert_eq!(snat("mode: nat", 0), (vec!["10.0.0.9".to_owned()], false));
        assert_eq!(snat("mode: nat", 1), (vec![], true));
        let mut desired = desired("mode: nat");
        let config = Arc::make_mut(&mut desired.config);
        config.services[0].backends[0].is_here = true;
        let told = wanted(&desired, &HealthOf::new(), &node, &mut RingCache::default());
        let first = &told.services[0].backends[0];
        assert_eq!((first.snat.len(), first.is_local), (0, true), "the source says that it is on this node");
        assert_eq!(snat("mode: nat, source: keep", 0), (vec![], false));
        assert_eq!(snat("mode: dsr-l2", 0), (vec![], false));
    }

    #[test]
    fn outer_source_is_the_nodes_address_towards_the_tunnel_or_varies_within_the_configured_prefix() {
        let text = |more: &str| {
            format!(
                "version: 1\ninterfaces: [eth0]\n{more}\nservices:\n  - {{ name: web, vips: [192.0.2.1], port: 80, \
                mode: dsr-ipip, backends: [{{ address: 10.0.0.1, port: 80, tunnel: \"fd00::1\" }}, {{ address: \
                10.0.0.2, port: 80 }}] }}\n"
            )
        };
        let mut node = Node { is_known: true, ..Node::default() };
        for (to, source) in [("fd00::1", "fd00::9"), ("10.0.0.2", "10.0.0.9")] {
            let route = Route { ifindex: 2, gateway: None, source: Some(source.parse().unwrap()), is_local: false };
            node.routes.insert(to.parse().unwrap(), route);
        }
        let tunnels = |more: &str| {
            let config = crate::config::parse(&text(more), Path::new("weir.yaml")).unwrap();
            let desired = Desired { config: Arc::new(config), ..desired("mode: nat") };
            let wanted = wanted(&desired, &HealthOf::new(), &node, &mut RingCache::default());
            let tunnels = wanted.services[0].backends.iter().map(|backend| {
                let tunnel = backend.tunnel.unwrap();
                (tunnel.to.to_string(), tunnel.source.unwrap().to_string())
            });
            (tunnels.collect::<Vec<_>>(), wanted.settings.vary_source_v4, wanted.settings.vary_source_v6)
        };
        let pair = |to: &str, source: &str| (to.to_owned(), source.to_owned());
        assert_eq!(tunnels(""), (vec![pair("fd00::1", "fd00::9"), pair("10.0.0.2", "10.0.0.9")], 0, 0));
        let varied = tunnels("tunnel: { source: [10.7.0.0/16, \"fd07::/64\"] }");
        let expected = vec![pair("fd00::1", "fd07::"), pair("10.0.0.2", "10.7.0.0")];
        assert_eq!(varied, (expected, 0x0000_ffff_u32.to_be(), u32::MAX));
        assert_eq!(tunnels("tunnel: { source: [10.7.0.1/32, \"fd07::/112\"] }").1, 0);
        assert_eq!(tunnels("tunnel: { source: [10.7.0.1/32, \"fd07::/112\"] }").2, 0x0000_ffff_u32.to_be());
    }

    #[test]
    fn start_waits_for_a_verdict_on_every_active_backend_that_is_probed() {
        let desired_with = desired(PROBED);
        let mut health = HealthOf::from([(id("10.0.0.1:80"), (Health::Down, 1))]);
        assert!(!is_judged(&desired_with, &health));
        health.insert(id("[fd02::1]:80"), (Health::Up, 1));
        assert!(is_judged(&desired_with, &health));
        assert!(is_judged(&desired("mode: nat"), &HealthOf::new()));
    }
}
