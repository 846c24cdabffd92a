//! Maps in memory, in place of the kernel's, so that a thousand random sequences can run. It
//! applies writes one by one, as `dataplane::maps` does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{
    backend::Backend,
    limits::{MAX_BACKENDS, RING_ARENA_SLOTS},
    service::Service,
    settings::Settings,
    slot::{REJECT, Slot},
};

use crate::{
    dataplane::{
        image::{Image, Slots, Write},
        settle::change::follow,
    },
    model::MAX_RING_SIZE,
};

/// The rings in the tests are shorter; damaged entries may claim to be longer.
const READ_AT_MOST: u32 = 1000;

#[derive(Default)]
pub struct Fake {
    pub settings: Option<Settings>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub services: BTreeMap<SocketAddr, Service>,
    pub arena: BTreeMap<u32, Slot>,
    pub backends: BTreeMap<u32, Backend>,
    pub snat: BTreeMap<u32, IpAddr>,
    pub ways_out: BTreeMap<u32, u32>,
    pub peers: BTreeSet<IpNet>,
    /// In tenths of seconds.
    pub clocks: BTreeMap<u32, u32>,
    /// Indexes that no fingerprint names.
    forgotten_syns: BTreeSet<u32>,
    /// Indexes and slots that were in use since the last grace period: programs may still hold
    /// them.
    held_backends: BTreeSet<u32>,
    held_slots: BTreeSet<u32>,
}

impl Slots for Fake {
    fn range(&self, offset: u32, len: u32) -> Vec<Slot> {
        let end = offset.saturating_add(len.min(READ_AT_MOST)).min(RING_ARENA_SLOTS);
        (offset..end).map(|at| self.arena.get(&at).copied().unwrap_or(Slot::settled(0))).collect()
    }
}

impl Fake {
    pub fn image(&self) -> Image {
        let snat_len = self.snat.keys().last().map_or(0, |last| last + 1);
        Image {
            settings: self.settings,
            addresses: self.addresses.clone(),
            services: self.services.clone(),
            backends: self
                .backends
                .iter()
                .filter(|(_, backend)| backend.family != 0 || backend.generation != 0)
                .map(|(index, backend)| (*index, *backend))
                .collect(),
            snat_addresses: (0..snat_len).map(|index| self.snat.get(&index).copied()).collect(),
            ways_out: self.ways_out.clone(),
            peers: self.peers.clone(),
        }
    }

    pub fn ring(&self, service: &Service) -> Vec<Slot> {
        self.range(service.ring_offset, service.ring_len)
    }

    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Settings(settings) => self.settings = Some(**settings),
            Write::SnatAddress { index, address: Some(address) } => drop(self.snat.insert(*index, *address)),
            Write::SnatAddress { index, address: None } => drop(self.snat.remove(index)),
            Write::Backend { index, backend } => {
                assert!(*index < MAX_BACKENDS);
                let before = self.backends.insert(*index, **backend).filter(|before| before.family != 0);
                let is_other = before.is_none_or(|before| before.address != backend.address);
                if backend.family != 0 && is_other {
                    assert!(!self.held_backends.contains(index), "index {index} is used again without a grace period");
                }
                if before.is_some() && backend.family == 0 {
                    self.held_backends.insert(*index);
                    self.forgotten_syns.remove(index);
                }
                if backend.family != 0 && is_other && backend.generation > 1 {
                    assert!(self.forgotten_syns.contains(index), "fingerprints still name index {index}");
                }
            }
            Write::Slot { at, from, to, now_ds } => {
                let slot = self.arena.entry(*at).or_insert(Slot::settled(0));
                let next = follow(*slot, *from, *to);
                if !slot.in_transition() && next.in_transition() {
                    self.clocks.insert(*at, *now_ds);
                }
                *slot = next;
            }
            Write::ForgetSyns { backends } => {
                assert!(
                    backends.is_disjoint(&self.held_backends),
                    "fingerprints are forgotten before the grace period"
                );
                self.forgotten_syns.extend(backends);
            }
            Write::Ring { offset, slots } => {
                for (at, slot) in (*offset..).zip(slots) {
                    assert!(!self.held_slots.contains(&at), "slot {at} is used again without a grace period");
                    assert!(!self.is_named(at), "slot {at} belongs to a running ring");
                    self.arena.insert(at, *slot);
                }
            }
            Write::Service { vip, service } => {
                if let Some(before) = self.services.insert(*vip, **service) {
                    self.hold(&before);
                }
            }
            Write::RemoveService { vip } => {
                if let Some(before) = self.services.remove(vip) {
                    self.hold(&before);
                }
            }
            Write::Address { address, bits } => drop(self.addresses.insert(*address, *bits)),
            Write::RemoveAddress { address } => drop(self.addresses.remove(address)),
            Write::Peer { prefix } => drop(self.peers.insert(*prefix)),
            Write::RemovePeer { prefix } => drop(self.peers.remove(prefix)),
            Write::WayOut { ifindex, flags } => drop(self.ways_out.insert(*ifindex, *flags)),
            Write::RemoveWayOut { ifindex } => drop(self.ways_out.remove(ifindex)),
            Write::GracePeriod => {
                self.held_backends.clear();
                self.held_slots.clear();
            }
            Write::ClearBackendStats { .. } | Write::ClearServiceStats { .. } => {}
        }
    }

    fn hold(&mut self, before: &Service) {
        let end = before.ring_offset.saturating_add(before.ring_len.min(READ_AT_MOST));
        let held: Vec<u32> = (before.ring_offset..end).filter(|at| !self.is_named(*at)).collect();
        self.held_slots.extend(held);
    }

    fn is_named(&self, at: u32) -> bool {
        self.services
            .values()
            .filter(|service| service.ring_len <= MAX_RING_SIZE)
            .any(|service| at.checked_sub(service.ring_offset).is_some_and(|within| within < service.ring_len))
    }

    /// What a SYN would find right now: `reject`, or a backend whose entry exists and serves.
    pub fn assert_every_owner_serves(&self) {
        for (vip, service) in &self.services {
            for slot in self.ring(service).iter().filter(|slot| slot.current() != REJECT) {
                let owner = self.backends.get(&slot.current());
                assert!(owner.is_some_and(Backend::is_serving), "a slot of {vip} names {owner:?}");
            }
        }
    }

    /// A flow that began before its slot changed reaches its own backend, or none: never another
    /// backend that was given the same index.
    pub fn assert_every_previous_is_known(&self) {
        for (vip, service) in &self.services {
            for slot in self.ring(service).iter().filter(|slot| slot.in_transition() && slot.previous() != REJECT) {
                let previous = self.backends.get(&slot.previous());
                let is_known = previous.is_some_and(|one| one.family == 0 || one.service == service.id);
                assert!(is_known, "{slot:?} of {vip}: its previous owner is {previous:?}");
            }
        }
    }

    /// As if every drain had begun long ago and had a time-out of zero.
    pub fn make_all_drain_at_once(&mut self) {
        for backend in self.backends.values_mut() {
            backend.drain_timeout_ms = 0;
        }
    }
}
