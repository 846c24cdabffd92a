//! The agent's own code, called as its tasks call it, but for the grace periods: no program runs
//! meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    backend::Backend,
    flow::Family,
    hash::HashKey,
    limits::WAY_OUT_REDIRECT,
    nat::NatTimeouts,
    ports::PortPool,
    settings::{LAYOUT, Settings},
};
use lb_userspace::{
    balance::{Declared, Ring},
    dataplane::{
        image::{Image, Write},
        maps::Maps,
        plan::{FlowUse, Memo, Wanted, WantedBackend, WantedService, plan_again},
        programmed::Programmed,
        settle::{scope::SettleScope, settler::Settler},
    },
    model::{self, Affinity, Mode},
    state,
};
use weir_tests::model::{
    Admin, BACKENDS, CLOSING_TIMEOUT, DRAIN_TIMEOUT, ESTABLISHED_TIMEOUT, HALF_OPEN_TIMEOUT, Health, OnDead, World,
};

use crate::bed::{self, Interfaces};

pub const SECOND: u64 = 1_000_000_000;
pub const SEED: [u8; 16] = *b"a seed of tests!";

/// What is configured, besides the world.
#[derive(Clone, Debug)]
pub struct Shape {
    pub families: Vec<Family>,
    pub slots: u32,
    pub settle_time: Duration,
    /// Whether programs run meanwhile, so that grace periods are needed.
    pub waits: bool,
}

pub struct Agent {
    shape: Shape,
    on: Interfaces,
    pin_dir: PathBuf,
    pub maps: Maps,
    settler: Settler,
    memo: Memo,
    pub programmed: Image,
    rings: BTreeMap<Declared, Arc<Ring>>,
    scope: Option<SettleScope>,
    stage: Stage,
}

/// The next step of a pass, and what it was begun with.
enum Stage {
    Begin,
    Keep(SettleScope),
    Forget(SettleScope),
    Mark(SettleScope),
    Collect(SettleScope),
    Finish(SettleScope),
}

impl Agent {
    pub fn new(pin_dir: &Path, shape: Shape, on: Interfaces) -> Self {
        let maps = Maps::open(pin_dir).unwrap();
        Self {
            shape,
            on,
            pin_dir: pin_dir.to_owned(),
            settler: Settler::open(pin_dir, maps.shared_slots()).unwrap(),
            maps,
            memo: Memo::default(),
            programmed: Image::default(),
            rings: BTreeMap::new(),
            scope: None,
            stage: Stage::Begin,
        }
    }

    /// Another process in its place, which knows what is pinned.
    pub fn restart(&mut self) {
        let rings = std::mem::take(&mut self.rings);
        *self = Self { rings, ..Self::new(&self.pin_dir.clone(), self.shape.clone(), self.on) };
        self.read();
    }

    /// Takes what the maps hold for what is programmed, as the agent does every few seconds.
    pub fn read(&mut self) {
        self.programmed = self.maps.read().unwrap();
    }

    pub fn reconcile(&mut self, world: &World, now_ns: u64) {
        let wanted = self.wanted(world, now_ns);
        let slots = self.maps.slots();
        let plan = plan_again(&wanted, &self.programmed, slots, &FlowUse::default(), now_ns, &mut self.memo).unwrap();
        for write in plan.writes.iter().filter(|write| self.shape.waits || **write != Write::GracePeriod) {
            self.maps.apply(write).unwrap();
        }
        self.programmed = plan.target.clone();
        self.scope = Some(SettleScope::of(&wanted, &Programmed::of(plan, &Programmed::default()), &BTreeSet::new()));
    }

    /// The next plan's rings have so many slots.
    pub fn set_slots(&mut self, slots: u32) {
        self.shape.slots = slots;
    }

    /// What there is to settle.
    pub fn scope(&self) -> SettleScope {
        self.scope.clone().unwrap()
    }

    /// One step of a pass; false if it was the last.
    pub fn step(&mut self, now_ns: u64) -> bool {
        let settler = &mut self.settler;
        self.stage = match std::mem::replace(&mut self.stage, Stage::Begin) {
            Stage::Begin => {
                let scope = self.scope.clone().unwrap();
                match settler.begin(&scope, now_ns).unwrap() {
                    0 => Stage::Mark(scope),
                    _ => Stage::Keep(scope),
                }
            }
            Stage::Keep(scope) => {
                settler.keep(&scope, now_ns).unwrap();
                Stage::Forget(scope)
            }
            Stage::Forget(scope) => {
                settler.forget().unwrap();
                Stage::Mark(scope)
            }
            Stage::Mark(scope) => {
                settler.mark(&scope);
                Stage::Collect(scope)
            }
            Stage::Collect(scope) => {
                settler.collect(&scope, now_ns).unwrap();
                Stage::Finish(scope)
            }
            Stage::Finish(scope) => {
                settler.finish(&scope);
                return false;
            }
        };
        true
    }

    fn wanted(&mut self, world: &World, now_ns: u64) -> Wanted {
        let numbers = || (0..BACKENDS).filter(|number| world.backends[usize::from(*number)].is_declared);
        let mut backends = Vec::new();
        let mut rings = BTreeMap::new();
        for family in self.shape.families.clone() {
            backends.extend(numbers().map(|number| wanted_backend(world, family, number)));
            let weight = |number: u8| world.backends[usize::from(number)].weight.into();
            let weighted = numbers().map(|number| (bed::backend(family, number + 1), weight(number)));
            let declared = Declared::new(SEED, self.shape.slots, weighted);
            let ring = self.rings.entry(declared.clone()).or_insert_with(|| Arc::new(Ring::new(declared))).clone();
            rings.insert(family, ring);
        }
        backends.sort_by_key(|backend| backend.address);
        let service = WantedService {
            name: state::ServiceName::of_file("web"),
            vips: self.shape.families.iter().map(|family| bed::vip(*family)).collect(),
            port: bed::web(Family::V4).port(),
            mode: Mode::DsrL2,
            keeps_source: false,
            affinity: Affinity::None,
            drain_timeout: Duration::from_secs(DRAIN_TIMEOUT),
            settle_time: self.shape.settle_time,
            on_dead: match world.on_dead {
                OnDead::Next => model::OnDead::Next,
                OnDead::Reset => model::OnDead::Reset,
                OnDead::Drop => model::OnDead::Drop,
            },
            rings,
            backends,
            gone: Default::default(),
        };
        Wanted {
            settings: settings(),
            limits: Default::default(),
            holds: false,
            services: vec![service.into()],
            node_addresses: Default::default(),
            peers: Default::default(),
            ways_out: [self.on.front, self.on.back].map(|ifindex| (ifindex, WAY_OUT_REDIRECT)).into(),
            since_ns: now_ns,
        }
    }

    /// Everything away that it has written. Generations count on, for programs remember next hops
    /// by them.
    pub fn undo(&mut self) {
        let before = std::mem::take(&mut self.programmed);
        for (index, backend) in before.backends {
            let free = Backend { generation: backend.generation, ..Backend::FREE };
            self.maps.apply(&Write::Backend { index, backend: free.into() }).unwrap();
            self.programmed.backends.insert(index, free);
        }
        for vip in before.services.into_keys() {
            self.maps.apply(&Write::RemoveService { vip }).unwrap();
        }
        (self.memo, self.stage, self.scope) = (Memo::default(), Stage::Begin, None);
        self.settler = Settler::open(&self.pin_dir, self.maps.shared_slots()).unwrap();
    }
}

fn wanted_backend(world: &World, family: Family, number: u8) -> WantedBackend {
    let declared = world.backends[usize::from(number)];
    WantedBackend {
        address: bed::backend(family, number + 1),
        admin: match declared.admin {
            Admin::Active => state::AdminState::Active,
            Admin::Draining => state::AdminState::Draining,
            Admin::Disabled => state::AdminState::Disabled,
        },
        health: match declared.health {
            Health::Up => state::Health::Up,
            Health::Down => state::Health::Down,
            Health::Dead => state::Health::Dead,
        },
        health_since_unix_ns: 0,
        is_eligible: world.is_eligible(number),
        is_local: false,
        snat: Vec::new(),
        tunnel: None,
    }
}

pub fn hash_key() -> HashKey {
    HashKey::from_seed(SEED)
}

fn settings() -> Settings {
    Settings {
        hash_key: hash_key(),
        nat_timeouts: NatTimeouts {
            half_open_ns: HALF_OPEN_TIMEOUT * SECOND,
            established_ns: ESTABLISHED_TIMEOUT * SECOND,
            closing_ns: CLOSING_TIMEOUT * SECOND,
        },
        ports: PortPool::new([(1024, 32_767)], 1),
        flags: 0,
        layout: LAYOUT,
        vary_source_v4: 0,
        vary_source_v6: 0,
    }
}
