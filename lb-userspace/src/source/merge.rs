//! Merges the services of all sources: the file's as a whole, those of every other source one by
//! one. If a service can't be served as its source describes it, its previous version, if any, is
//! kept where possible.

use std::collections::{BTreeMap, BTreeSet};

use super::Heard;
use crate::{
    model::{
        Config, NodeSettings, Service,
        incompatible::{Running, changes},
        limits::Limits,
        need::Need,
        rules::broken,
        together::{Claims, Together},
    },
    state::ServiceName,
};

/// Services for which the maps have no room, and why.
pub type Unfit = BTreeMap<ServiceName, String>;

/// A service that is not served as its source describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The name of the source.
    pub source: &'static str,
    pub service: ServiceName,
    /// Every reason.
    pub reason: String,
    /// Whether its previous version is still served.
    pub is_kept: bool,
}

/// The services of all sources, and those that were refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    pub config: Config,
    pub refusals: Vec<Refusal>,
}

/// Merges the services of `file` with those of the other sources. `unfit` are services for which
/// the maps have no room, `running` the services that are served now, and `limits` the limits of
/// the maps.
///
/// If services of other sources conflict, the later one is refused. Unchanged services come first,
/// then changed ones, then new ones.
pub fn merge(file: &Config, heard: &Heard, unfit: &Unfit, running: &Config, limits: &Limits) -> Merged {
    let mut merger = Merger::new(&file.node, running, limits, unfit);
    file.services.iter().for_each(|service| merger.take(service));
    let said = || heard.iter().flat_map(|(source, said)| said.services.iter().map(|service| (*source, service)));
    let is_unchanged = |service: &Service| running.service(&service.name) == Some(service);
    let is_new = |service: &Service| running.service(&service.name).is_none();
    for (source, service) in said().filter(|(_, service)| is_unchanged(service)) {
        merger.merge(source, service);
    }
    for (source, said) in heard {
        for (name, reason) in &said.refused {
            merger.refuse(source, name, reason.clone());
        }
    }
    for (source, service) in said().filter(|(_, service)| !is_unchanged(service) && !is_new(service)) {
        merger.merge(source, service);
    }
    for (source, service) in said().filter(|(_, service)| is_new(service)) {
        merger.merge(source, service);
    }
    merger.finish()
}

/// The services to refuse, with reasons, because the maps have no room for `merged`: the services
/// of `misfits`, or, if none of these can be refused, all services that differ from those in
/// `running`, with `whole` as the reason. Services of the file, and those that are in `unfit`
/// already, are left out.
pub fn without_room(
    misfits: Unfit,
    whole: &impl ToString,
    merged: &Config,
    (file, running): (&Config, &Config),
    unfit: &Unfit,
) -> Unfit {
    let is_of_file = |name: &ServiceName| file.service(name).is_some();
    let named: Unfit = misfits.into_iter().filter(|(name, _)| !is_of_file(name) && !unfit.contains_key(name)).collect();
    if !named.is_empty() {
        return named;
    }
    let differs = |service: &&Service| !is_of_file(&service.name) && running.service(&service.name) != Some(service);
    let changed = merged.services.iter().filter(differs).filter(|service| !unfit.contains_key(&service.name));
    changed.map(|service| (service.name.clone(), whole.to_string())).collect()
}

struct Merger<'a> {
    together: Together<()>,
    need: Need,
    running: &'a Config,
    taken_over: Running<'a>,
    limits: &'a Limits,
    unfit: &'a Unfit,
    names: BTreeSet<ServiceName>,
    merged: Merged,
}

impl<'a> Merger<'a> {
    fn new(node: &NodeSettings, running: &'a Config, limits: &'a Limits, unfit: &'a Unfit) -> Self {
        let mut need = Need::default();
        need.add_addresses(node.snat.addresses.iter().copied());
        Self {
            together: Together::new(node.snat.addresses.iter().map(|address| (*address, ()))),
            need,
            running,
            taken_over: Running::new(running),
            limits,
            unfit,
            names: BTreeSet::new(),
            merged: Merged { config: Config { node: node.clone(), services: Vec::new() }, refusals: Vec::new() },
        }
    }

    fn take(&mut self, service: &Service) {
        self.together.add(&Claims::of(service));
        self.need.add(service);
        self.names.insert(service.name.clone());
        self.merged.config.services.push(service.clone());
    }

    fn merge(&mut self, source: &'static str, service: &Service) {
        let mut reasons = broken(service);
        let loses = |(key, change): (&str, String)| {
            format!("{key}: {change} would move or end every connection of the service")
        };
        for from in self.taken_over.predecessors(service) {
            reasons.extend(changes(from, service).into_iter().map(loses));
        }
        reasons.extend(self.conflicts(service));
        reasons.extend(self.unfit.get(&service.name).cloned());
        if reasons.is_empty() {
            self.take(service);
        } else {
            self.refuse(source, &service.name, reasons.join("; "));
        }
    }

    /// Why the service can't be served together with those that were taken.
    fn conflicts(&self, service: &Service) -> Vec<String> {
        let is_taken = self.names.contains(&service.name);
        let taken = is_taken.then(|| format!("another source has a service named {}", service.name));
        let conflicts = self.together.conflicts(&Claims::of(service)).into_iter().map(|one| one.why.to_string());
        let exceeded = self.need.exceeds_with(service, self.limits).into_iter().map(|one| one.to_string());
        taken.into_iter().chain(conflicts).chain(exceeded).collect()
    }

    /// Records the refusal. The running version of the service is taken, if it has no conflicts.
    fn refuse(&mut self, source: &'static str, name: &ServiceName, reason: String) {
        let had = self.running.service(name).filter(|had| self.conflicts(had).is_empty());
        if let Some(had) = had {
            self.take(had);
        }
        self.merged.refusals.push(Refusal { source, service: name.clone(), reason, is_kept: had.is_some() });
    }

    fn finish(self) -> Merged {
        let mut merged = self.merged;
        merged.config.services.sort_by(|a, b| a.name.cmp(&b.name));
        merged.refusals.sort_by(|a, b| (a.source, &a.service).cmp(&(b.source, &b.service)));
        merged
    }
}

/// The refusals in `after` that are not in `before`.
pub fn new_refusals<'a>(before: &[Refusal], after: &'a [Refusal]) -> Vec<&'a Refusal> {
    let before: BTreeMap<(&str, &ServiceName), &str> =
        before.iter().map(|one| ((one.source, &one.service), one.reason.as_str())).collect();
    let is_new = |one: &&Refusal| before.get(&(one.source, &one.service)) != Some(&one.reason.as_str());
    after.iter().filter(is_new).collect()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::source::{Knowledge, Said};

    const OTHER: &str = "other";

    fn file(services: &str) -> Config {
        let text = format!(
            "version: 1\ninterfaces: [eth0]\nsnat: {{ addresses: [192.0.2.99] }}\nlimits: {{ backends: 1024 \
            }}\nservices: [{services}]\n"
        );
        crate::config::parse(&text, Path::new("weir.yaml")).unwrap()
    }

    const WEB: &str = "{ name: web, vips: [192.0.2.1], port: 80, backends: [{ address: 10.0.0.1, port: 8080 }] }";

    /// The service `shop/NAME:http` of another source.
    fn service(name: &str, vip: &str) -> Service {
        let [web] = <[Service; 1]>::try_from(file(WEB).services).unwrap();
        Service { name: ServiceName::new("shop", name, "http"), vips: vec![vip.parse().unwrap()], ..web }
    }

    fn heard(services: Vec<Service>) -> Heard {
        let said = Said { knowledge: Knowledge::Synced, services: Arc::new(services), ..Said::default() };
        Heard::from([(OTHER, Arc::new(said))])
    }

    /// The services that are served, by name and VIP, and the names and reasons of those refused.
    fn merged(file: &Config, heard: &Heard, running: &Config) -> (Vec<String>, Vec<(String, String, bool)>) {
        let Merged { config, refusals } = merge(file, heard, &Unfit::new(), running, &file.node.limits);
        let services = config.services.iter().map(|service| format!("{} {}", service.name, service.vips[0]));
        let refusals = refusals.into_iter().map(|one| (one.service.to_string(), one.reason, one.is_kept));
        (services.collect(), refusals.collect())
    }

    fn running(file: &Config, services: &[Service]) -> Config {
        let mut services = [file.services.clone(), services.to_vec()].concat();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Config { services, ..file.clone() }
    }

    #[test]
    fn services_without_room_are_refused_and_otherwise_those_that_are_new_or_have_changed() {
        let file = file(WEB);
        let (same, before, new) = (service("same", "192.0.2.2"), service("b", "192.0.2.3"), service("c", "192.0.2.4"));
        let changed = Service { ring_size: 31, ..before.clone() };
        let running = running(&file, &[same.clone(), before]);
        let merged = self::running(&file, &[same, changed.clone(), new.clone()]);
        let refused = |misfits: &[&ServiceName], unfit: &[&ServiceName]| {
            let of =
                |names: &[&ServiceName]| names.iter().map(|name| ((*name).clone(), "its own".to_owned())).collect();
            let refused = without_room(of(misfits), &"of all", &merged, (&file, &running), &of(unfit));
            refused.into_iter().map(|(name, why)| format!("{}: {why}", name.name())).collect::<Vec<_>>()
        };
        assert_eq!(refused(&[&new.name], &[]), ["c: its own"]);
        assert_eq!(refused(&[], &[]), ["b: of all", "c: of all"], "what is missing is missing for all");
        let of_file = &file.services[0].name;
        assert_eq!(refused(&[of_file], &[]), ["b: of all", "c: of all"], "they are in the way of the file's");
        assert_eq!(refused(&[of_file], &[&changed.name, &new.name]), [""; 0], "there is nothing left to refuse");
    }

    #[test]
    fn services_of_all_sources_are_served_and_a_bad_one_holds_up_no_other() {
        let file = file(WEB);
        let nothing = running(&Config { services: Vec::new(), ..file.clone() }, &[]);
        let good = service("good", "192.0.2.2");
        let (mut tunnel, mut large) = (service("tunnel", "192.0.2.3"), service("large", "192.0.2.4"));
        tunnel.backends[0].tunnel = Some("10.0.0.9".parse().unwrap());
        large.ring_size = 16_777_213;
        let bad = [
            (service("taken", "192.0.2.1"), "192.0.2.1:80 is served by service web already"),
            (service("again", "192.0.2.2"), "192.0.2.2:80 is served by service shop/good:http already"),
            (service("loop", "10.0.0.1"), "10.0.0.1 is a VIP of service shop/loop:http"),
            (service("snat", "192.0.2.99"), "192.0.2.99 is a VIP: replies"),
            (tunnel, "backend 10.0.0.1:8080: tunnel is for mode dsr-ipip only"),
            (large, "limits.ringSlots allows"),
        ];
        let all = [good].into_iter().chain(bad.iter().map(|(service, _)| service.clone())).collect();
        let (served, refused) = merged(&file, &heard(all), &nothing);
        assert_eq!(served, ["web 192.0.2.1", "shop/good:http 192.0.2.2"]);
        assert_eq!(refused.len(), bad.len());
        for (service, reason) in bad {
            let found = refused.iter().find(|(name, ..)| *name == service.name.to_string()).unwrap();
            assert!(found.1.contains(reason) && !found.2, "{found:?}");
        }
    }

    #[test]
    fn refused_service_keeps_what_it_had_until_something_else_takes_it() {
        let mut config = file(WEB);
        let before = service("shop", "192.0.2.2");
        let is_running = running(&config, std::slice::from_ref(&before));
        for (change, reason) in [
            (Service { ring_size: 31, ..before.clone() }, "ringSize: a change from 16381 to 31 would move"),
            (Service { vips: vec!["192.0.2.1".parse().unwrap()], ..before.clone() }, "served by service web already"),
        ] {
            let (served, refused) = merged(&config, &heard(vec![change]), &is_running);
            assert_eq!(served, ["web 192.0.2.1", "shop/shop:http 192.0.2.2"]);
            assert!(refused[0].1.contains(reason) && refused[0].2, "{refused:?}");
        }
        let mut indescribable = heard(Vec::new());
        Arc::make_mut(indescribable.get_mut(OTHER).unwrap())
            .refused
            .insert(before.name.clone(), "weir.dev/mode: no such mode".to_owned());
        let (served, refused) = merged(&config, &indescribable, &is_running);
        assert_eq!(served, ["web 192.0.2.1", "shop/shop:http 192.0.2.2"]);
        assert_eq!(refused, [("shop/shop:http".to_owned(), "weir.dev/mode: no such mode".to_owned(), true)]);
        // A service that its source no longer has goes.
        assert_eq!(merged(&config, &heard(Vec::new()), &is_running).0, ["web 192.0.2.1"]);
        // The file comes before every other source.
        config.services[0].vips = vec!["192.0.2.2".parse().unwrap()];
        let (served, refused) = merged(&config, &heard(vec![before]), &is_running);
        assert_eq!(served, ["web 192.0.2.2"]);
        assert!(!refused[0].2, "{refused:?}");
    }

    #[test]
    fn service_that_is_served_already_comes_before_a_new_one() {
        let file = file(WEB);
        let (a, z) = (service("a", "192.0.2.2"), service("z", "192.0.2.2"));
        let both = heard(vec![a.clone(), z.clone()]);
        let (served, _) = merged(&file, &both, &running(&file, std::slice::from_ref(&z)));
        assert_eq!(served, ["web 192.0.2.1", "shop/z:http 192.0.2.2"]);
        // One that changes does not push out one that stays as it is.
        let grows = Service { vips: vec!["192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap()], ..a };
        let before = Service { vips: vec!["192.0.2.3".parse().unwrap()], ..grows.clone() };
        let (served, refused) = merged(&file, &heard(vec![grows, z.clone()]), &running(&file, &[before, z]));
        assert_eq!(served, ["web 192.0.2.1", "shop/a:http 192.0.2.3", "shop/z:http 192.0.2.2"]);
        assert!(refused.len() == 1 && refused[0].2, "{refused:?}");
    }

    #[test]
    fn service_under_another_name_may_not_move_the_connections_of_its_vip() {
        let file = file(WEB);
        let old = service("old", "192.0.2.2");
        let new = Service { ring_size: 31, ..service("new", "192.0.2.2") };
        let (served, refused) = merged(&file, &heard(vec![new]), &running(&file, std::slice::from_ref(&old)));
        assert_eq!(served, ["web 192.0.2.1"]);
        assert!(refused[0].1.starts_with("ringSize: a change from 16381 to 31"), "{refused:?}");
        let renamed = Service { name: ServiceName::new("shop", "new", "http"), ..old.clone() };
        assert_eq!(merged(&file, &heard(vec![renamed]), &running(&file, &[old])).1, []);
    }

    #[test]
    fn refusals_are_said_once() {
        let refusal = |reason: &str| Refusal {
            source: OTHER,
            service: ServiceName::new("shop", "web", "http"),
            reason: reason.to_owned(),
            is_kept: true,
        };
        let count = |before: &[Refusal], after: &[Refusal]| new_refusals(before, after).len();
        assert_eq!(count(&[], &[refusal("a")]), 1);
        assert_eq!(count(&[refusal("a")], &[refusal("a")]), 0);
        assert_eq!(count(&[refusal("a")], &[refusal("b")]), 1);
    }
}
