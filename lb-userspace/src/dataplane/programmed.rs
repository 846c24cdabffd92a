//! What the maps hold, as the owner of the maps wrote it last: a part for each service, and what
//! belongs to no single service. Parts are shared, so that a copy for readers is cheap.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::{
    backend::Backend,
    service::{Service, address::SNAT},
    settings::Settings,
};

use super::{
    image::Image,
    plan::planned::{Leaving, Plan},
};
use crate::state::{BackendId, ServiceName};

/// The contents of the maps without the slots, by service.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Programmed {
    /// By the id of the service.
    parts: BTreeMap<u32, Arc<Part>>,
    ids: Arc<BTreeMap<ServiceName, u32>>,
    pub common: Arc<Common>,
}

/// What the maps hold for one service.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Part {
    pub id: u32,
    /// The name that the service has, or had while it was wanted.
    pub name: ServiceName,
    /// The service's entries, by VIP and port.
    pub services: BTreeMap<SocketAddr, Service>,
    /// The entries of its backends, by index.
    pub backends: BTreeMap<u32, Backend>,
    /// The indexes of its wanted backends, by address.
    pub indexes: BTreeMap<SocketAddr, u32>,
    /// Backends that are no longer declared, and drain.
    pub leaving: Vec<Leaving>,
    /// The service's next deadline: see `Plan::ends`.
    pub next_ns: Option<u64>,
}

/// What the maps hold for all services together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Common {
    pub settings: Option<Settings>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub snat_addresses: Vec<Option<IpAddr>>,
    pub peers: BTreeSet<IpNet>,
    pub ways_out: BTreeMap<u32, u32>,
    /// Entries of `BACKENDS` that no service uses, for their generations.
    pub free: BTreeMap<u32, Backend>,
}

impl Programmed {
    /// The state after a plan of all services; services that are no longer wanted keep the name
    /// that they had in `before`.
    pub fn of(plan: Plan, before: &Programmed) -> Self {
        let Plan { target, services, backends, leaving, ends, .. } = plan;
        let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
        for (name, id) in &services {
            parts.insert(*id, Part { id: *id, name: name.clone(), ..Part::default() });
        }
        let mut to_part = |id: u32, add: &mut dyn FnMut(&mut Part)| {
            let left = || Part { id, name: before.name(id), ..Part::default() };
            add(parts.entry(id).or_insert_with(left));
        };
        for (vip, entry) in target.services {
            to_part(entry.id, &mut |part| {
                part.services.insert(vip, entry);
            });
        }
        let mut free = BTreeMap::new();
        for (index, entry) in target.backends {
            if entry.family == 0 {
                free.insert(index, entry);
            } else {
                to_part(entry.service, &mut |part| {
                    part.backends.insert(index, entry);
                });
            }
        }
        for (id, index) in backends {
            if let Some(service) = services.get(&id.service) {
                to_part(*service, &mut |part| {
                    part.indexes.insert(id.address, index);
                });
            }
        }
        for one in leaving {
            to_part(one.service, &mut |part| part.leaving.push(one));
        }
        for (id, at_ns) in ends {
            to_part(id, &mut |part| part.next_ns = Some(at_ns));
        }
        let common = Common {
            settings: target.settings,
            addresses: target.addresses,
            snat_addresses: target.snat_addresses,
            peers: target.peers,
            ways_out: target.ways_out,
            free,
        };
        let parts = parts.into_iter().map(|(id, part)| (id, Arc::new(part))).collect();
        Self { parts, ids: services.into(), common: common.into() }
    }

    /// Takes over the result of a plan of some services: [`super::plan::plan_part`].
    pub fn take(&mut self, plan: Plan) {
        let Plan { mut target, .. } = plan;
        let common = Arc::make_mut(&mut self.common);
        common.settings = target.settings.take();
        common.addresses.append(&mut target.addresses);
        common.snat_addresses = std::mem::take(&mut target.snat_addresses);
        let of_part = Self::of(Plan { target, ..plan }, self);
        let common = Arc::make_mut(&mut self.common);
        common.free.clone_from(&of_part.common.free);
        self.parts.extend(of_part.parts);
    }

    /// The parts of all services, wanted or not.
    pub fn parts(&self) -> impl Iterator<Item = &Arc<Part>> {
        self.parts.values()
    }

    pub fn part(&self, id: u32) -> Option<&Arc<Part>> {
        self.parts.get(&id)
    }

    /// The part of the wanted service of this name.
    pub fn named(&self, name: &ServiceName) -> Option<&Arc<Part>> {
        self.part(*self.ids.get(name)?)
    }

    /// Whether the part is that of a wanted service.
    pub fn is_wanted(&self, part: &Part) -> bool {
        self.ids.get(&part.name) == Some(&part.id)
    }

    /// The name of a service by its id; `removed-ID` for one that left before this agent started.
    pub fn name(&self, id: u32) -> ServiceName {
        let removed = || ServiceName::of_file(&format!("removed-{id}"));
        self.part(id).map_or_else(removed, |part| part.name.clone())
    }

    /// The identity of a backend that leaves.
    pub fn id_of(&self, leaving: &Leaving) -> BackendId {
        BackendId { service: self.name(leaving.service), address: leaving.address }
    }

    /// Backends that are no longer declared, and drain.
    pub fn leaving(&self) -> impl Iterator<Item = &Leaving> {
        self.parts().flat_map(|part| &part.leaving)
    }

    /// Whether a VIP or a SNAT address is kept only for old flows, so that it can go once a census
    /// finds these flows over.
    pub fn keeps_for_flows(&self) -> bool {
        let common = &self.common;
        let used: BTreeSet<&IpAddr> = common.snat_addresses.iter().flatten().collect();
        let is_left = |(address, bits): (&IpAddr, &u32)| bits & SNAT != 0 && !used.contains(address);
        common.addresses.iter().any(is_left)
            || self.parts().any(|part| part.services.values().any(|service| service.draining_since_ns > 0))
    }

    /// The whole state as one image.
    pub fn image(&self) -> Image {
        let Common { settings, addresses, snat_addresses, peers, ways_out, free } = &*self.common;
        let backends = self.parts().flat_map(|part| &part.backends).chain(free);
        Image {
            settings: *settings,
            addresses: addresses.clone(),
            services: self.parts().flat_map(|part| &part.services).map(|(vip, entry)| (*vip, *entry)).collect(),
            backends: backends.map(|(index, entry)| (*index, *entry)).collect(),
            snat_addresses: snat_addresses.clone(),
            peers: peers.clone(),
            ways_out: ways_out.clone(),
        }
    }
}
