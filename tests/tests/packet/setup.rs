//! What the agent would have written: a service `web` on port 80 of the VIP, in each family.

use std::net::IpAddr;

use lb_common::{
    backend::{Backend, WAY_NAT},
    flow::{Family, any_addr},
    hash::HashKey,
    nat::NatTimeouts,
    ports::PortPool,
    service::{MODE_NAT, Service, address},
    settings::{LAYOUT, Settings},
    slot::Slot,
};

use crate::{
    bed,
    rig::Rig,
    tables::{Entry, Pair, Table},
};

pub const RING_LEN: u32 = 101;
pub const SECOND: u64 = 1_000_000_000;
pub const SEED: [u8; 16] = *b"a seed of tests!";

/// The service's index in `SERVICE_STATS`.
pub const fn stats_of(family: Family) -> u32 {
    10 + family.number() as u32
}

pub const fn ring_offset(family: Family) -> u32 {
    RING_LEN * family.number() as u32 % 128
}

pub fn settings() -> Settings {
    Settings {
        hash_key: HashKey::from_seed(SEED),
        nat_timeouts: NatTimeouts { half_open_ns: 30 * SECOND, established_ns: 7200 * SECOND, closing_ns: 60 * SECOND },
        ports: PortPool::new([(1024, 32_767), (61_000, 65_535)], 12_345),
        flags: 0,
        layout: LAYOUT,
        vary_source_v4: 0,
        vary_source_v6: 0,
    }
}

impl Rig {
    /// Mode `nat` over the first `backends` backends of the backends' network, which own the slots
    /// in turn.
    pub fn nat(&mut self, family: Family, backends: u8) {
        self.settings.set(0, settings(), 0).unwrap();
        for (index, ip) in [bed::snat(family), bed::other_snat(family)].into_iter().enumerate() {
            self.snat_addresses.set(snat_first(family) as u32 + index as u32, any_addr(ip), 0).unwrap();
        }
        self.tables(family).set_address(bed::vip(family), address::VIP);
        self.tables(family).set_address(bed::snat(family), address::SNAT);
        for number in 1..=backends {
            self.set_backend(number.into(), self.backend_entry(family, bed::backend(family, number)));
        }
        self.set_service(family, |_| {});
        self.set_slots(family, |slot| slot % u32::from(backends) + 1);
    }

    /// An entry as of the backends of [`Rig::nat`], for `address`.
    pub fn backend_entry(&self, family: Family, address: std::net::SocketAddr) -> Backend {
        Backend {
            address: any_addr(address.ip()),
            port_be: address.port().to_be(),
            family: family.number(),
            way: WAY_NAT,
            flags: Backend::FLAG_SERVING,
            generation: 1,
            service: 1,
            snat_first: snat_first(family),
            snat_count: 1,
            ..Backend::FREE
        }
    }

    pub fn set_backend(&mut self, index: u32, backend: Backend) {
        self.backends.set(index, backend, 0).unwrap();
        self.forget_hop(index);
    }

    pub fn change_backend(&mut self, index: u32, change: impl FnOnce(&mut Backend)) {
        let mut backend = self.backends.get(&index, 0).unwrap();
        change(&mut backend);
        self.set_backend(index, backend);
    }

    pub fn change_settings(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.get(&0, 0).unwrap();
        change(&mut settings);
        self.settings.set(0, settings, 0).unwrap();
    }

    /// The service `web`, with changes.
    pub fn set_service(&mut self, family: Family, change: impl FnOnce(&mut Service)) {
        let mut service = self.service(family);
        change(&mut service);
        self.tables(family).set_service(bed::web(family), service);
    }

    /// The service `web`.
    pub fn service(&self, family: Family) -> Service {
        Service {
            ring_offset: ring_offset(family),
            ring_len: RING_LEN,
            id: 1,
            stats: stats_of(family),
            flags: 0,
            mode: MODE_NAT,
            reserved: [0; 3],
            draining_since_ns: 0,
        }
    }

    /// Gives every slot the owner that `owner` says, settled.
    pub fn set_slots(&mut self, family: Family, owner: impl Fn(u32) -> u32) {
        for slot in 0..RING_LEN {
            self.rings.set(ring_offset(family) + slot, Slot::settled(owner(slot)).0, 0).unwrap();
        }
    }

    pub fn set_address(&mut self, ip: IpAddr, bits: u32) {
        self.tables(Family::of(&ip)).set_address(ip, bits);
    }

    /// The entries of a flow that need not be there.
    pub fn flow(&mut self, family: Family, table: Table, key: Pair) -> Option<Entry> {
        self.tables(family).flows(table).get(&key).copied()
    }

    /// How many entries the half-open and the established table hold.
    pub fn counts(&mut self, family: Family) -> (usize, usize) {
        let tables = self.tables(family);
        (tables.flows(Table::HalfOpen).len(), tables.flows(Table::Established).len())
    }

    /// Makes every entry of a table look as if it had last been used `seconds` earlier than it was.
    pub fn age(&mut self, family: Family, table: Table, seconds: u64) {
        self.change_flows(family, table, |_, entry| {
            entry.last_seen_ns = entry.last_seen_ns.wrapping_sub(seconds * SECOND);
        });
    }

    pub fn change_flows(&mut self, family: Family, table: Table, change: impl Fn(&Pair, &mut Entry)) {
        let tables = self.tables(family);
        for (key, mut entry) in tables.flows(table) {
            change(&key, &mut entry);
            tables.set_flow(table, key, entry);
        }
    }
}

const fn snat_first(family: Family) -> u16 {
    family.number() as u16
}
