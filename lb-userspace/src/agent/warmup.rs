//! Keeps track of new services that are warming up: the first verdicts on their backends come one
//! after another, and each verdict moves slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::desired::{Desired, HealthOf, are_judged};
use crate::{
    dataplane::{image::Image, plan::WantedService},
    model::Service,
    state::ServiceName,
};

/// The services that are warming up, by name, each with the time at which it no longer waits for
/// verdicts on its backends.
#[derive(Debug, Default)]
pub struct Warmup(BTreeMap<ServiceName, Instant>);

impl Warmup {
    /// Adds the probed services that have no entry in the maps yet. Returns the names of all
    /// services that are warming up.
    pub fn admit(&mut self, desired: &Desired, image: &Image, now: Instant) -> BTreeSet<ServiceName> {
        for service in &desired.config.services {
            let is_known = |vip| image.services.contains_key(&SocketAddr::new(vip, service.port));
            if service.health.is_some() && !service.vips.iter().copied().any(is_known) {
                self.0.entry(service.name.clone()).or_insert_with(|| now + startup_time([service]));
            }
        }
        self.names()
    }

    /// Whether a first verdict on one of the service's backends may wait for the next tick: the
    /// service is warming up, serves already in each family, and more first verdicts are to come.
    /// Otherwise each verdict of a start would be planned and written by itself. `wanted` is the
    /// service as it was written last.
    ///
    /// Only in `nat`, where every flow has an entry. In DSR modes, a slot that will still move
    /// should move before it has flows.
    pub fn may_wait(&self, wanted: &WantedService, desired: &Desired, health: &HealthOf) -> bool {
        let Some(service) = desired.service(&wanted.name).filter(|service| !service.mode.is_dsr()) else {
            return false;
        };
        let eligible = || wanted.backends.iter().filter(|backend| backend.is_eligible);
        let serves = |vip: &IpAddr| eligible().any(|backend| backend.address.is_ipv4() == vip.is_ipv4());
        self.0.contains_key(&wanted.name) && wanted.vips.iter().all(serves) && !are_judged(service, desired, health)
    }

    /// The names of all services that are warming up.
    pub fn names(&self) -> BTreeSet<ServiceName> {
        self.0.keys().cloned().collect()
    }

    /// Removes the services whose backends all have a verdict, or have had enough time to get one,
    /// and returns their names.
    pub fn expire(&mut self, desired: &Desired, health: &HealthOf, now: Instant) -> BTreeSet<ServiceName> {
        let mut expired = BTreeSet::new();
        self.0.retain(|name, until| {
            let service = desired.service(name);
            let stays = now < *until && service.is_some_and(|service| !are_judged(service, desired, health));
            if !stays {
                expired.insert(name.clone());
            }
            stays
        });
        expired
    }
}

/// A time long enough for every backend's first verdict.
pub fn startup_time<'a>(services: impl IntoIterator<Item = &'a Service>) -> Duration {
    let checks = services.into_iter().filter_map(|service| service.health.as_ref());
    checks.map(|check| check.interval * check.fall + check.timeout).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use lb_common::service::Service;

    use super::*;
    use crate::{
        agent::{
            desired::{RingCache, wanted},
            node::Node,
        },
        model::Limits,
        overrides::Overrides,
        state::{BackendId, Health},
    };

    /// Two backends that are probed.
    fn desired(mode: &str) -> Desired {
        let text = "version: 1\ninterfaces: [eth0]\nservices:\n  - { name: web, vips: [192.0.2.1], port: 80, mode: \
            MODE, health: { tcp: {}, interval: 1s, fall: 3, timeout: 1s }, \
                    backends: [{ address: 10.0.0.1, port: 80 }, { address: 10.0.0.2, port: 80 }] }\n";
        let config = Arc::new(crate::config::parse(&text.replace("MODE", mode), Path::new("weir.yaml")).unwrap());
        Desired {
            config,
            limits: Limits::default(),
            holds: false,
            seed: [1; 16],
            overrides: Overrides::default(),
            since_ns: 1,
            is_traced: false,
        }
    }

    fn id(backend: &str) -> BackendId {
        BackendId { service: ServiceName::of_file("web"), address: backend.parse().unwrap() }
    }

    #[test]
    fn first_verdicts_wait_for_the_tick_once_the_service_serves_and_until_the_last_of_them() {
        let (desired, now) = (desired("nat"), Instant::now());
        let mut warmup = Warmup::default();
        warmup.admit(&desired, &Image::default(), now);
        let mut health = HealthOf::new();
        let written = |health: &HealthOf| {
            wanted(&desired, health, &Node::default(), &mut RingCache::default()).services.remove(0)
        };
        let before = written(&health);
        health.insert(id("10.0.0.1:80"), (Health::Up, 1));
        assert!(!warmup.may_wait(&before, &desired, &health), "nothing serves yet");
        let serving = written(&health);
        assert!(warmup.may_wait(&serving, &desired, &health), "another verdict is to come");
        let dsr = super::tests::desired("dsr-l2");
        assert!(!warmup.may_wait(&serving, &dsr, &health), "a slot that moves has flows without entries");
        health.insert(id("10.0.0.2:80"), (Health::Up, 1));
        assert!(!warmup.may_wait(&serving, &desired, &health), "the last one");
        assert!(!Warmup::default().may_wait(&serving, &desired, &HealthOf::new()), "not warming up");
    }

    #[test]
    fn service_begins_until_every_backend_is_judged_and_only_if_the_maps_do_not_know_it() {
        let (desired, now) = (desired("dsr-l2"), Instant::now());
        let web = BTreeSet::from([ServiceName::of_file("web")]);
        let mut known = Image::default();
        let entry = Service {
            ring_offset: 0,
            ring_len: 1,
            id: 1,
            stats: 0,
            flags: 0,
            mode: 0,
            reserved: [0; 3],
            draining_since_ns: 0,
        };
        known.services.insert("192.0.2.1:80".parse().unwrap(), entry);
        assert_eq!(Warmup::default().admit(&desired, &known, now), BTreeSet::new());

        let mut warmup = Warmup::default();
        assert_eq!(warmup.admit(&desired, &Image::default(), now), web);
        let mut health = HealthOf::new();
        for (backend, last) in [("10.0.0.1:80", false), ("10.0.0.2:80", true)] {
            health.insert(id(backend), (Health::Up, 1));
            warmup.expire(&desired, &health, now);
            assert_eq!(warmup.admit(&desired, &known, now).is_empty(), last, "{backend}");
        }

        let mut slow = Warmup::default();
        slow.admit(&desired, &Image::default(), now);
        slow.expire(&desired, &HealthOf::new(), now + Duration::from_secs(3));
        assert_eq!(slow.admit(&desired, &known, now), web);
        slow.expire(&desired, &HealthOf::new(), now + Duration::from_secs(4));
        assert_eq!(slow.admit(&desired, &known, now), BTreeSet::new(), "time enough");
    }
}
