mod dsr;
mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    backend::{ADMIN_REMOVED, Backend, HEALTH_DOWN, WAY_NAT},
    flow::Family,
    hash::HashKey,
    nat::NatTimeouts,
    ports::PortPool,
    service::{self, Service},
    settings,
    slot::{REJECT, Slot},
};
use proptest::prelude::*;

use self::fake::Fake;
use super::*;
use crate::{
    balance::{Declared, Ring},
    dataplane::{image::Write, programmed::Programmed},
    model::{Affinity, Limits, Mode, OnDead},
    state::{AdminState, BackendId, Health, ServiceName},
};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1000 * SECOND;
const SEED: [u8; 16] = [7; 16];

fn settings_of_test() -> settings::Settings {
    settings::Settings {
        hash_key: HashKey::from_seed(SEED),
        nat_timeouts: NatTimeouts { half_open_ns: 1, established_ns: 2, closing_ns: 3 },
        ports: PortPool::new([(1024, 2047)], 1),
        flags: 0,
        layout: 0,
        vary_source_v4: 0,
        vary_source_v6: 0,
    }
}

fn wanted(services: Vec<WantedService>) -> Wanted {
    Wanted {
        settings: settings_of_test(),
        limits: Limits::default(),
        services: services.into_iter().map(Arc::new).collect(),
        holds: false,
        node_addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
        peers: BTreeSet::new(),
        ways_out: BTreeMap::from([(3, 1)]),
        since_ns: 0,
    }
}

fn up(address: &str) -> WantedBackend {
    let address: SocketAddr = address.parse().unwrap();
    let snat = if address.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    WantedBackend {
        address,
        admin: AdminState::Active,
        health: Health::Up,
        health_since_unix_ns: 5,
        is_eligible: true,
        is_local: false,
        snat: vec![snat.parse().unwrap()],
        tunnel: None,
    }
}

fn service(name: &str, vips: &[&str], mut backends: Vec<WantedBackend>, ring_size: u32) -> WantedService {
    backends.sort_by_key(|backend| backend.address);
    let vips: Vec<IpAddr> = vips.iter().map(|vip| vip.parse().unwrap()).collect();
    let families: BTreeSet<Family> = vips.iter().map(Family::of).collect();
    let ring = |family: Family| {
        let of_family = backends.iter().filter(|backend| Family::of(&backend.address.ip()) == family);
        Arc::new(Ring::new(Declared::new(SEED, ring_size, of_family.map(|backend| (backend.address, 1)))))
    };
    WantedService {
        name: ServiceName::of_file(name),
        port: 80,
        mode: Mode::Nat,
        keeps_source: false,
        affinity: Affinity::None,
        drain_timeout: Duration::from_secs(60),
        settle_time: Duration::from_secs(30),
        on_dead: OnDead::Next,
        rings: families.into_iter().map(|family| (family, ring(family))).collect(),
        vips,
        backends,
        gone: BTreeSet::new(),
    }
}

fn web(backends: &[&str]) -> WantedService {
    service("web", &["192.0.2.10", "2001:db8::10"], backends.iter().map(|address| up(address)).collect(), 31)
}

const BOTH: [&str; 4] = ["10.2.0.11:80", "10.2.0.12:80", "[fd02::11]:80", "[fd02::12]:80"];

/// Plans and applies, up to `rounds` times; then nothing must be left to do.
fn converge(fake: &mut Fake, wanted: &Wanted, in_use: &FlowUse, now_ns: u64, rounds: usize) -> Plan {
    for _ in 0..rounds {
        for write in plan(wanted, &fake.image(), fake, in_use, now_ns).unwrap().writes {
            fake.apply(&write);
        }
    }
    let plan = plan(wanted, &fake.image(), fake, in_use, now_ns).unwrap();
    assert_eq!(plan.writes, [], "not in sync after {rounds} rounds");
    assert_eq!(plan.target, fake.image());
    plan
}

fn owners_seen(fake: &Fake, vip: &str) -> BTreeSet<String> {
    let image = fake.image();
    let service = image.services[&vip.parse().unwrap()];
    fake.ring(&service)
        .iter()
        .map(|slot| match image.backends.get(&slot.current()).and_then(address) {
            Some(address) => address.to_string(),
            None => "reject".to_owned(),
        })
        .collect()
}

fn strings(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

#[test]
fn service_without_backends_rejects_until_it_gets_one_and_again_after_the_last() {
    let mut fake = Fake::default();
    let now = |seconds: u64| NOW + seconds * SECOND;
    for (at, backends, seen) in
        [(0, &[][..], ["reject", "reject"]), (1, &BOTH[..3], [BOTH[0], BOTH[2]]), (200, &[][..], ["reject", "reject"])]
    {
        let wanted = wanted(vec![web(backends)]);
        converge(&mut fake, &wanted, &FlowUse { scanned_at_ns: now(at), ..FlowUse::default() }, now(at), 1);
        for (vip, owner) in ["192.0.2.10:80", "[2001:db8::10]:80"].into_iter().zip(seen) {
            assert!(owners_seen(&fake, vip).contains(owner), "{vip} after {at} s");
        }
    }
}

#[test]
fn nothing_of_an_unknown_service_changes_while_services_are_held() {
    let other = || service("other", &["192.0.2.20", "2001:db8::20"], vec![up("10.2.0.21:80"), up(BOTH[0])], 31);
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH), other()]), &FlowUse::default(), NOW, 1);
    let before = fake.image();
    let of_other = |image: &Image| {
        let id = image.services[&"192.0.2.20:80".parse().unwrap()].id;
        let backends = image.backends.iter().filter(|(_, backend)| backend.service == id);
        let services = image.services.iter().filter(|(_, service)| service.id == id);
        (
            services.map(|(at, one)| (*at, *one)).collect::<Vec<_>>(),
            backends.map(|(at, one)| (*at, *one)).collect::<Vec<_>>(),
        )
    };
    let rings =
        |fake: &Fake| of_other(&fake.image()).0.iter().map(|(_, service)| fake.ring(service)).collect::<Vec<_>>();
    let (slots, in_use) = (rings(&fake), FlowUse { scanned_at_ns: NOW + 900 * SECOND, ..FlowUse::default() });
    // A new service shares a backend with `other`, and `web` has one backend fewer.
    let known = vec![web(&BOTH[..3]), service("new", &["192.0.2.30"], vec![up("10.2.0.21:80")], 31)];
    let held = Wanted { holds: true, ..wanted(known.clone()) };
    let plan = converge(&mut fake, &held, &in_use, NOW + 900 * SECOND, 2);
    assert_eq!(of_other(&fake.image()), of_other(&before));
    assert_eq!(rings(&fake), slots);
    assert_ne!(plan.services[&ServiceName::of_file("new")], of_other(&before).0[0].1.id);
    for vip in ["192.0.2.20", "2001:db8::20"] {
        let vip = vip.parse().unwrap();
        assert_eq!(fake.image().addresses[&vip], before.addresses[&vip]);
    }
    // Once `other` is listed again, it goes on as it was. Once all sources have listed their
    // services without it, it is removed.
    let names = [known.clone(), vec![other()]].concat();
    let plan = converge(&mut fake, &wanted(names), &in_use, NOW + 901 * SECOND, 1);
    assert_eq!(plan.services[&ServiceName::of_file("other")], of_other(&before).0[0].1.id);
    assert_eq!(rings(&fake), slots);
    converge(&mut fake, &wanted(known), &in_use, NOW + 902 * SECOND, 1);
    let later = NOW + 2000 * SECOND;
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse { scanned_at_ns: later, ..in_use }, later, 2);
    assert!(!fake.image().services.contains_key(&"192.0.2.20:80".parse().unwrap()));
}

#[test]
fn backend_that_is_gone_is_free_at_once_and_one_that_left_drains() {
    let mut fake = Fake::default();
    let before = converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let index = |address: &str| {
        before.backends[&BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() }]
    };
    let gone = BTreeSet::from([BOTH[1].parse().unwrap()]);
    let less = WantedService { gone, ..web(&[BOTH[0], BOTH[2]]) };
    let plan = converge(&mut fake, &wanted(vec![less]), &FlowUse::default(), NOW + SECOND, 1);
    assert_eq!(fake.image().backends[&index(BOTH[1])].family, 0);
    assert_eq!(fake.image().backends[&index(BOTH[3])].admin, ADMIN_REMOVED);
    assert_eq!(plan.leaving.iter().map(|one| one.index).collect::<Vec<_>>(), [index(BOTH[3])]);
}

#[test]
fn vip_balances_over_the_backends_of_its_own_family() {
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&BOTH[..2]));
    assert_eq!(owners_seen(&fake, "[2001:db8::10]:80"), strings(&BOTH[2..]));
    let image = fake.image();
    assert_eq!(
        image.addresses[&"10.0.0.1".parse::<IpAddr>().unwrap()],
        service::address::SNAT | service::address::NODE
    );
    assert_eq!(image.addresses[&"192.0.2.10".parse::<IpAddr>().unwrap()], service::address::VIP);
}

#[test]
fn writes_go_from_backends_to_slots_to_services_to_vips_and_back() {
    let kind = |write: &Write| match write {
        Write::Settings(_)
        | Write::WayOut { .. }
        | Write::RemoveWayOut { .. }
        | Write::Peer { .. }
        | Write::RemovePeer { .. }
        | Write::ForgetSyns { .. }
        | Write::GracePeriod => None,
        Write::Address { address, .. } | Write::RemoveAddress { address } => {
            ["192.0.2.10", "2001:db8::10"].contains(&address.to_string().as_str()).then_some("vip")
        }
        Write::SnatAddress { .. } => None,
        Write::Backend { .. } | Write::ClearBackendStats { .. } => Some("backend"),
        Write::Slot { .. } | Write::Ring { .. } => Some("slot"),
        Write::Service { .. } | Write::RemoveService { .. } | Write::ClearServiceStats { .. } => Some("service"),
    };
    let order = |writes: &[Write]| {
        let mut kinds: Vec<&str> = writes.iter().filter_map(kind).collect();
        kinds.dedup();
        kinds
    };
    let mut fake = Fake::default();
    let mut all = wanted(vec![web(&BOTH)]);
    assert_eq!(
        order(&plan(&all, &fake.image(), &fake, &FlowUse::default(), NOW).unwrap().writes),
        ["backend", "slot", "service", "vip"]
    );
    converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    all.services.clear();
    fake.make_all_drain_at_once();
    assert_eq!(
        order(&plan(&all, &fake.image(), &fake, &FlowUse::default(), NOW).unwrap().writes),
        ["vip", "service", "backend"]
    );
}

#[test]
fn backend_taken_out_drains_until_its_last_flow_has_ended() {
    let mut fake = Fake::default();
    let before = converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let index = before.backends[&BackendId { service: ServiceName::of_file("web"), address: BOTH[0].parse().unwrap() }];
    let less = wanted(vec![web(&BOTH[1..])]);
    let plan = converge(&mut fake, &less, &FlowUse::default(), NOW, 1);
    assert_eq!(
        plan.leaving.iter().map(|one| (one.index, one.until_ns)).collect::<Vec<_>>(),
        [(index, NOW + 60 * SECOND)]
    );
    assert_eq!(plan.ends.values().min().copied(), Some(NOW + 60 * SECOND));
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&BOTH[1..2]));
    let entry = fake.image().backends[&index];
    assert!(entry.is_serving() && entry.admin == ADMIN_REMOVED && entry.draining_since_ns == NOW);

    // A pass over the flows that began too early proves nothing; a pass that found a flow keeps the
    // entry.
    let scan = |at, backends: &[u32]| FlowUse {
        scanned_at_ns: at,
        busy: backends.iter().copied().collect(),
        ..FlowUse::default()
    };
    let later = NOW + 10 * SECOND;
    assert_eq!(converge(&mut fake, &less, &scan(NOW, &[]), later, 1).leaving.len(), 1);
    assert_eq!(converge(&mut fake, &less, &scan(later, &[index]), later, 1).leaving.len(), 1);
    assert_eq!(converge(&mut fake, &less, &scan(later, &[]), later, 1).leaving, []);
    let gone = fake.image().backends[&index];
    assert_eq!(gone, Backend { generation: entry.generation, ..Backend::FREE });
}

#[test]
fn drain_ends_with_its_timeout_and_at_once_if_that_is_zero() {
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let mut less = wanted(vec![web(&BOTH[1..])]);
    assert_eq!(converge(&mut fake, &less, &FlowUse::default(), NOW, 1).leaving.len(), 1);
    assert_eq!(converge(&mut fake, &less, &FlowUse::default(), NOW + 59 * SECOND, 1).leaving.len(), 1);
    assert_eq!(converge(&mut fake, &less, &FlowUse::default(), NOW + 60 * SECOND, 1).leaving.len(), 0);
    less.services[0] = Arc::new(web(&BOTH[2..]));
    Arc::make_mut(&mut less.services[0]).drain_timeout = Duration::ZERO;
    assert_eq!(converge(&mut fake, &less, &FlowUse::default(), NOW, 1).leaving.len(), 0);
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&["reject"]));
}

#[test]
fn backend_declared_again_while_it_drains_keeps_its_index_and_flows() {
    let mut fake = Fake::default();
    let all = wanted(vec![web(&BOTH)]);
    let before = converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let image = fake.image();
    converge(&mut fake, &wanted(vec![web(&BOTH[1..])]), &FlowUse::default(), NOW, 1);
    let after = converge(&mut fake, &all, &FlowUse::default(), NOW + SECOND, 1);
    assert_eq!(before.backends, after.backends);
    assert_eq!(image, fake.image());
}

#[test]
fn index_of_a_backend_that_is_gone_is_used_again_with_another_generation() {
    let mut fake = Fake::default();
    let mut first = web(&BOTH[..1]);
    first.drain_timeout = Duration::ZERO;
    let mut second = web(&BOTH[1..2]);
    second.drain_timeout = Duration::ZERO;
    converge(&mut fake, &wanted(vec![first.clone()]), &FlowUse::default(), NOW, 1);
    let generations: Vec<(u32, u32)> = [&second, &first, &second]
        .map(|service| {
            let plan = converge(&mut fake, &wanted(vec![service.clone()]), &FlowUse::default(), NOW, 1);
            let index = *plan.backends.values().next().unwrap();
            (index, fake.image().backends[&index].generation)
        })
        .to_vec();
    assert_eq!(generations, [(2, 1), (1, 2), (2, 2)]);
}

#[test]
fn disabled_backend_ends_its_flows_at_once_and_gets_no_new_ones() {
    let mut fake = Fake::default();
    let mut all = wanted(vec![web(&BOTH)]);
    converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let disabled = &mut Arc::make_mut(&mut all.services[0]).backends[0];
    (disabled.admin, disabled.is_eligible) = (AdminState::Disabled, false);
    let plan = converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let index = plan.backends[&BackendId { service: ServiceName::of_file("web"), address: BOTH[0].parse().unwrap() }];
    assert!(!fake.image().backends[&index].is_serving());
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&BOTH[1..2]));
}

#[test]
fn backend_on_this_node_keeps_the_clients_address_and_its_answers_are_recognised() {
    let mut fake = Fake::default();
    let mut web = web(&["10.2.0.11:8080", "10.2.0.12:8080"]);
    web.backends[0].is_local = true;
    let plan = converge(&mut fake, &wanted(vec![web]), &FlowUse::default(), NOW, 1);
    let entry = |address: &str| {
        let id = BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() };
        plan.target.backends[&plan.backends[&id]]
    };
    let both = Backend::FLAG_LOCAL | Backend::FLAG_KEEP_SOURCE;
    assert_eq!(entry("10.2.0.11:8080").flags & both, both);
    assert_eq!(entry("10.2.0.12:8080").flags & both, 0);
    assert_eq!(plan.target.addresses[&"10.2.0.11".parse().unwrap()], service::address::KEEP_SOURCE);
    assert!(plan.target.settings.unwrap().flags & settings::Settings::FLAG_KEEP_SOURCE != 0);
}

#[test]
fn backend_that_goes_down_moves_its_slots_alone_and_keeps_its_flows() {
    let mut fake = Fake::default();
    let backends = ["10.2.0.11:80", "10.2.0.12:80", "10.2.0.13:80"];
    let mut all = wanted(vec![service("web", &["192.0.2.10"], backends.map(up).to_vec(), 251)]);
    let before = converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let down = &mut Arc::make_mut(&mut all.services[0]).backends[0];
    (down.health, down.is_eligible) = (Health::Down, false);
    let plan = super::plan(&all, &fake.image(), &fake, &FlowUse::default(), NOW).unwrap();
    let index =
        before.backends[&BackendId { service: ServiceName::of_file("web"), address: backends[0].parse().unwrap() }];
    for write in &plan.writes {
        match write {
            Write::Slot { from, to, .. } => assert!(from.current() == index && to.current() != index),
            Write::Backend { index: written, backend } => {
                assert!(*written == index && backend.is_serving() && backend.health == HEALTH_DOWN);
            }
            other => panic!("{other:?} has nothing to do with it"),
        }
    }
    let slots = plan.writes.iter().filter(|write| matches!(write, Write::Slot { .. })).count();
    assert!((83..=84).contains(&slots), "{slots} slots were written");
}

#[test]
fn service_taken_out_resets_new_connections_and_lets_old_ones_end() {
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let none = wanted(vec![]);
    let plan = converge(&mut fake, &none, &FlowUse::default(), NOW, 1);
    assert_eq!(plan.leaving.len(), 4);
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&["reject"]));
    assert!(fake.image().addresses.contains_key(&"192.0.2.10".parse::<IpAddr>().unwrap()));

    let plan = converge(&mut fake, &none, &FlowUse::default(), NOW + 60 * SECOND, 1);
    assert_eq!(plan.leaving.len(), 0);
    let image = fake.image();
    assert!(image.services.is_empty() && image.backends.values().all(|backend| backend.family == 0));
    assert!(!image.addresses.contains_key(&"192.0.2.10".parse::<IpAddr>().unwrap()));
}

#[test]
fn lack_of_room_for_vips_that_leave_is_no_services() {
    let mut fake = Fake::default();
    converge(
        &mut fake,
        &wanted(vec![service("web", &["192.0.2.10"], vec![up(BOTH[0])], 31)]),
        &FlowUse::default(),
        NOW,
        1,
    );
    let none = Wanted { limits: Limits { ring_slots: 31, ..Limits::default() }, ..wanted(vec![]) };
    let error = plan(&none, &fake.image(), &fake, &FlowUse::default(), NOW).unwrap_err();
    assert!(error.misfits.is_empty() && matches!(error.common, Some(Misfit::Rings { .. })), "{error:?}");
}

#[test]
fn vip_taken_out_lets_its_flows_end_while_its_service_goes_on() {
    let mut fake = Fake::default();
    let backends: Vec<WantedBackend> = BOTH[..2].iter().map(|address| up(address)).collect();
    let two = service("web", &["192.0.2.10", "192.0.2.11"], backends.clone(), 31);
    let one = wanted(vec![service("web", &["192.0.2.10"], backends, 31)]);
    converge(&mut fake, &wanted(vec![two]), &FlowUse::default(), NOW, 1);
    converge(&mut fake, &one, &FlowUse::default(), NOW, 1);
    assert_eq!(owners_seen(&fake, "192.0.2.11:80"), strings(&["reject"]));
    assert_eq!(owners_seen(&fake, "192.0.2.10:80"), strings(&BOTH[..2]));
    let stats = fake.image().services[&"192.0.2.11:80".parse().unwrap()].stats;
    let later = NOW + 9 * SECOND;
    let scan = FlowUse { scanned_at_ns: later, busy_vips: BTreeSet::from([stats]), ..FlowUse::default() };
    converge(&mut fake, &one, &scan, later, 1);
    assert_eq!(fake.image().services.len(), 2);
    converge(&mut fake, &one, &FlowUse { busy_vips: BTreeSet::new(), ..scan }, later, 1);
    assert_eq!(fake.image().services.len(), 1);
}

#[test]
fn service_under_another_name_keeps_its_backends_and_ring() {
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let mut renamed = web(&BOTH);
    renamed.name = ServiceName::of_file("shop");
    assert_eq!(plan(&wanted(vec![renamed]), &fake.image(), &fake, &FlowUse::default(), NOW).unwrap().writes, []);
}

#[test]
fn another_rule_for_the_source_makes_other_backends_and_old_flows_go_on() {
    let mut fake = Fake::default();
    let before = converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let mut kept = web(&BOTH);
    kept.keeps_source = true;
    kept.backends.iter_mut().for_each(|backend| backend.snat.clear());
    let after = converge(&mut fake, &wanted(vec![kept]), &FlowUse::default(), NOW, 1);
    assert_eq!(after.leaving.len(), 4);
    assert!(before.backends.values().all(|index| after.leaving.iter().any(|one| one.index == *index)));
    assert_ne!(fake.image().settings.unwrap().flags & settings::Settings::FLAG_KEEP_SOURCE, 0);
}

#[test]
fn snat_address_stays_known_until_no_flow_uses_it() {
    let mut fake = Fake::default();
    converge(&mut fake, &wanted(vec![web(&BOTH)]), &FlowUse::default(), NOW, 1);
    let mut moved = wanted(vec![web(&BOTH)]);
    moved.since_ns = NOW;
    for backend in &mut Arc::make_mut(&mut moved.services[0]).backends {
        backend.snat = vec!["10.0.0.9".parse().unwrap()];
    }
    let old: IpAddr = "10.0.0.1".parse().unwrap();
    let knows = |fake: &Fake| fake.image().addresses.get(&old).is_some_and(|bits| bits & service::address::SNAT != 0);
    converge(&mut fake, &moved, &FlowUse::default(), NOW, 1);
    assert!(knows(&fake));
    let later = NOW + 9 * SECOND;
    let scan = FlowUse { scanned_at_ns: later, snat: BTreeSet::from([old]), ..FlowUse::default() };
    converge(&mut fake, &moved, &scan, later, 1);
    assert!(knows(&fake));
    converge(&mut fake, &moved, &FlowUse { snat: BTreeSet::new(), ..scan }, later, 1);
    assert!(!knows(&fake));
}

#[test]
fn restarted_agent_finds_health_and_drains_in_the_maps() {
    let mut fake = Fake::default();
    let mut all = wanted(vec![web(&BOTH)]);
    let backends = &mut Arc::make_mut(&mut all.services[0]).backends;
    (backends[0].health, backends[0].is_eligible) = (Health::Down, false);
    (backends[1].health, backends[1].health_since_unix_ns) = (Health::Unknown, 0);
    (backends[3].admin, backends[3].is_eligible) = (AdminState::Draining, false);
    converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let health = recover(&all, &fake.image(), &fake).health;
    let of =
        |address: &str| health[&BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() }];
    assert_eq!(of(BOTH[0]), (Health::Down, 5));
    // This backend owned slots but had no verdict: it was not probed, and was assumed up.
    assert_eq!(of(BOTH[1]), (Health::Up, 0));
    assert_eq!(of(BOTH[2]), (Health::Up, 5));
    // The drain continues from where it was: a later plan finds nothing to write, and ends it in
    // time.
    assert_eq!(plan(&all, &fake.image(), &fake, &FlowUse::default(), NOW + 30 * SECOND).unwrap().writes, []);
    let ended = converge(&mut fake, &all, &FlowUse::default(), NOW + 60 * SECOND, 1);
    let index = ended.backends[&BackendId { service: ServiceName::of_file("web"), address: BOTH[3].parse().unwrap() }];
    assert!(!fake.image().backends[&index].is_serving());
}

#[test]
fn new_backend_has_no_health_to_recover() {
    let all = wanted(vec![web(&BOTH)]);
    assert_eq!(recover(&all, &Image::default(), &Fake::default()), Recovered::default());
}

#[test]
fn plan_by_what_is_remembered_is_the_plan_without() {
    let (mut memo, mut fake) = (Memo::default(), Fake::default());
    let mut all = wanted(vec![web(&BOTH)]);
    let again = |all: &Wanted, fake: &Fake, memo: &mut Memo| {
        plan_again(all, &fake.image(), fake, &FlowUse::default(), NOW, memo).unwrap()
    };
    for (at, is_eligible) in [(0, true), (0, false), (2, false), (0, true), (0, true), (2, true)] {
        Arc::make_mut(&mut all.services[0]).backends[at].is_eligible = is_eligible;
        let with_memo = again(&all, &fake, &mut memo);
        assert_eq!(with_memo, plan(&all, &fake.image(), &fake, &FlowUse::default(), NOW).unwrap());
        with_memo.writes.iter().for_each(|write| fake.apply(write));
    }
    // Somebody edits a slot: an audit finds it, and the next plan puts it right.
    assert_eq!(memo.audit(&fake, usize::MAX), Audit::default());
    let at = *fake.arena.first_key_value().unwrap().0 + 3;
    fake.arena.insert(at, Slot::new(9, 8, Slot::TRACKED));
    assert_eq!(again(&all, &fake, &mut memo).writes, []);
    assert_eq!(memo.audit(&fake, usize::MAX), Audit { wrong_owners: 1, rings: 1 });
    let writes = again(&all, &fake, &mut memo).writes;
    assert!(matches!(writes.as_slice(), [Write::Slot { at: written, .. }] if *written == at), "{writes:?}");
}

#[test]
fn audits_of_a_few_slots_each_have_seen_every_ring_after_a_round() {
    let (mut memo, mut fake) = (Memo::default(), Fake::default());
    let services = ["a", "b", "c"].map(|name| {
        let vip = format!("192.0.2.{}", name.as_bytes()[0]);
        service(name, &[&vip], BOTH[..2].iter().map(|address| up(address)).collect(), 31)
    });
    let all = wanted(services.to_vec());
    let plan = plan_again(&all, &fake.image(), &fake, &FlowUse::default(), NOW, &mut memo).unwrap();
    plan.writes.iter().for_each(|write| fake.apply(write));
    fake.arena.insert(93 - 1, Slot::settled(REJECT));
    let found: Vec<usize> = (0..4).map(|_| memo.audit(&fake, 31).wrong_owners).collect();
    assert_eq!(found, [0, 0, 1, 0]);
}

#[test]
fn too_large_rings_are_refused_by_name_and_nothing_is_planned() {
    let huge = service("web", &["192.0.2.10"], vec![up(BOTH[0])], 4_194_319);
    let error = plan(&wanted(vec![huge]), &Image::default(), &Fake::default(), &FlowUse::default(), NOW).unwrap_err();
    assert!(error.to_string().contains("service web"), "{error}");
}

/// The services that a plan with these limits has no room for, each with what it lacks.
fn misfits(limits: Limits, services: Vec<WantedService>) -> Vec<String> {
    assert!(services.is_sorted_by_key(|service| service.name.clone()), "in the order in which they are planned");
    let wanted = Wanted { limits, ..wanted(services) };
    match plan(&wanted, &Image::default(), &Fake::default(), &FlowUse::default(), NOW) {
        Ok(_) => Vec::new(),
        Err(error) => error.misfits.iter().map(|(name, misfit)| format!("{name}: {misfit}")).collect(),
    }
}

#[test]
fn all_services_without_room_are_found_at_once_and_take_no_room_from_others() {
    let backends = |count: u8| (1..=count).map(|last| up(&format!("10.2.0.{last}:80"))).collect::<Vec<_>>();
    let one = |name: &str, count: u8, ring_size: u32| service(name, &["192.0.2.1"], backends(count), ring_size);
    let names = |misfits: Vec<String>| {
        misfits.into_iter().map(|misfit| misfit.chars().take_while(|letter| *letter != ':').collect::<String>())
    };

    let rings = Limits { ring_slots: 80, ..Limits::default() };
    let both_families = service("c", &["192.0.2.3", "2001:db8::3"], backends(0), 31);
    let last = service("d", &["192.0.2.4"], backends(0), 31);
    let found = misfits(rings, vec![one("a", 1, 31), one("b", 0, 127), both_families, last]);
    assert!(names(found.clone()).eq(["b", "c"]), "{found:?}: d has what c gave back");

    let indexes = Limits { backends: 5, ..Limits::default() };
    let found = misfits(indexes, vec![one("a", 1, 31), one("b", 4, 31), one("c", 3, 31)]);
    assert!(names(found.clone()).eq(["b"]), "{found:?}: c has what b gave back");

    let counters = Limits { services: 2, ..Limits::default() };
    let vips = |name: &str, vips: &[&str]| service(name, vips, backends(0), 31);
    let four = vips("b", &["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]);
    let three = vips("c", &["192.0.2.6", "192.0.2.7", "192.0.2.8"]);
    let found = misfits(counters, vec![vips("a", &["192.0.2.1"]), four, three]);
    assert!(names(found.clone()).eq(["b"]), "{found:?}: c has what b gave back");

    let both = Limits { ring_slots: 80, backends: 5, ..Limits::default() };
    let found = misfits(both, vec![one("a", 3, 127), one("b", 2, 31)]);
    assert!(names(found.clone()).eq(["a"]), "{found:?}: without a there are indexes for b");
}

const VIPS: [&str; 6] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "2001:db8::3"];
const BACKENDS: [&str; 6] =
    ["10.2.0.1:80", "10.2.0.2:80", "10.2.0.3:80", "[fd02::1]:80", "[fd02::2]:80", "[fd02::3]:80"];

fn any_backend() -> impl Strategy<Value = (usize, WantedBackend)> {
    (0..BACKENDS.len(), 0..7_u8, any::<bool>()).prop_map(|(at, state, two)| {
        let mut backend = up(BACKENDS[at]);
        match state {
            0 => (backend.admin, backend.is_eligible) = (AdminState::Draining, false),
            1 => (backend.admin, backend.is_eligible) = (AdminState::Disabled, false),
            2 => (backend.health, backend.is_eligible) = (Health::Down, false),
            3 => (backend.health, backend.is_eligible) = (Health::Dead, false),
            _ => {}
        }
        if two && backend.address.is_ipv4() {
            backend.snat = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        }
        (at, backend)
    })
}

fn any_service(name: &'static str) -> impl Strategy<Value = WantedService> {
    let backends = proptest::collection::vec(any_backend(), 0..6);
    let on_dead = prop_oneof![Just(OnDead::Next), Just(OnDead::Reset), Just(OnDead::Drop)];
    (backends, prop_oneof![Just(11_u32), Just(13)], 0..6_u8, prop_oneof![Just(0_u64), Just(60)], on_dead).prop_map(
        move |(backends, ring_size, kind, drain, on_dead)| {
            let unique: BTreeMap<usize, WantedBackend> = backends.into_iter().collect();
            let mut one = service(name, &["192.0.2.1", "2001:db8::1"], unique.into_values().collect(), ring_size);
            one.mode = match kind {
                0 => Mode::DsrL2,
                2 | 3 => Mode::DsrIpip,
                _ => Mode::Nat,
            };
            one.on_dead = if one.mode == Mode::Nat { OnDead::Next } else { on_dead };
            one.keeps_source = kind == 1;
            one.drain_timeout = Duration::from_secs(drain);
            for backend in &mut one.backends {
                if kind < 4 {
                    backend.snat.clear();
                }
                if one.mode == Mode::DsrIpip {
                    let mixed = if kind == 2 { backend.address.ip() } else { "10.9.0.1".parse().unwrap() };
                    backend.tunnel = Some(TunnelEnds { to: mixed, source: Some("10.0.0.1".parse().unwrap()) });
                }
            }
            one
        },
    )
}

/// Some of three services, each with randomly chosen VIPs.
fn any_wanted() -> impl Strategy<Value = Wanted> {
    let owners = proptest::collection::vec(0..4_usize, VIPS.len());
    (any_service("a"), any_service("b"), any_service("c"), owners).prop_map(|(a, b, c, owners)| {
        let services = [a, b, c].into_iter().enumerate().filter_map(|(at, mut service)| {
            service.vips = VIPS
                .iter()
                .zip(&owners)
                .filter(|(_, owner)| **owner == at)
                .map(|(vip, _)| vip.parse().unwrap())
                .collect();
            service.rings.retain(|family, _| service.vips.iter().any(|vip| Family::of(vip) == *family));
            (!service.vips.is_empty()).then_some(service)
        });
        wanted(services.collect())
    })
}

/// What someone may have edited by hand.
#[derive(Clone, Debug)]
enum Damage {
    Slot(u32, u64),
    Backend(u32, u8, u32, u32),
    FreeBackend(u32),
    Service(usize, u32, u32, u32, u32),
    RemoveService(usize),
    Address(usize, u32),
    RemoveAddress(usize),
    Snat(u32),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..80_u32, any::<u64>()).prop_map(|(at, slot)| Damage::Slot(at, slot)),
        (0..12_u32, 0..8_u8, any::<u32>(), 0..5_u32).prop_map(|(i, a, b, c)| Damage::Backend(i, a, b, c)),
        (0..12_u32).prop_map(Damage::FreeBackend),
        (0..VIPS.len(), 0..60_u32, prop_oneof![Just(11_u32), Just(13), Just(1), any::<u32>()], 0..5_u32, 0..8_u32)
            .prop_map(|(vip, offset, len, id, stats)| Damage::Service(vip, offset, len, id, stats)),
        (0..VIPS.len()).prop_map(Damage::RemoveService),
        (0..VIPS.len(), any::<u32>()).prop_map(|(vip, bits)| Damage::Address(vip, bits)),
        (0..VIPS.len()).prop_map(Damage::RemoveAddress),
        (0..8_u32).prop_map(Damage::Snat),
    ]
}

fn damage(fake: &mut Fake, damage: &Damage) {
    let ip = |at: usize| VIPS[at].parse::<IpAddr>().unwrap();
    match *damage {
        Damage::Slot(at, slot) => fake.arena.insert(at, Slot(slot)).map_or((), drop),
        Damage::Backend(index, admin, flags, service) => {
            let address = lb_common::flow::any_addr("10.9.9.9".parse().unwrap());
            let entry =
                Backend { family: 4, way: WAY_NAT, address, flags, admin, service, generation: 3, ..Backend::FREE };
            fake.backends.insert(index, entry);
        }
        Damage::FreeBackend(index) => drop(fake.backends.remove(&index)),
        Damage::Service(vip, ring_offset, ring_len, id, stats) => {
            let entry =
                Service { ring_offset, ring_len, id, stats, flags: 0, mode: 1, reserved: [0; 3], draining_since_ns: 0 };
            fake.services.insert(SocketAddr::new(ip(vip), 80), entry);
        }
        Damage::RemoveService(vip) => drop(fake.services.remove(&SocketAddr::new(ip(vip), 80))),
        Damage::Address(vip, bits) => drop(fake.addresses.insert(ip(vip), bits)),
        Damage::RemoveAddress(vip) => drop(fake.addresses.remove(&ip(vip))),
        Damage::Snat(index) => drop(fake.snat.insert(index, "203.0.113.9".parse().unwrap())),
    }
}

/// Each wanted VIP leads to the backends that its ring names.
fn check(fake: &Fake, wanted: &Wanted) {
    let image = fake.image();
    for service in &wanted.services {
        for vip in &service.vips {
            let entry = image.services[&SocketAddr::new(*vip, service.port)];
            let ring = &service.rings[&Family::of(vip)];
            let declared = &ring.declared().backends;
            let eligible: Vec<bool> = declared
                .iter()
                .map(|(address, _)| service.backends.iter().any(|one| one.address == *address && one.is_eligible))
                .collect();
            for (slot, owner) in fake.ring(&entry).iter().zip(ring.owners(eligible.clone())) {
                let backend = image.backends.get(&slot.current()).filter(|backend| backend.family != 0);
                assert_eq!(backend.and_then(address), owner.map(|owner| declared[owner as usize].0), "{vip}");
                if let Some(backend) = backend {
                    assert!(
                        backend.is_serving()
                            && backend.service == entry.id
                            && backends::is_way_of(backend.way, service.mode)
                    );
                }
            }
        }
    }
}

/// The service with other backends.
fn with_backends(service: &WantedService, backends: Vec<WantedBackend>) -> WantedService {
    let mut backends = backends;
    backends.sort_by_key(|backend| backend.address);
    for backend in &mut backends {
        if service.mode != Mode::Nat || service.keeps_source {
            backend.snat.clear();
        }
        if service.mode == Mode::DsrIpip {
            backend.tunnel = Some(TunnelEnds { to: backend.address.ip(), source: Some("10.0.0.1".parse().unwrap()) });
        }
    }
    let ring = |(family, ring): (&Family, &Arc<Ring>)| {
        let of_family = backends.iter().filter(|backend| Family::of(&backend.address.ip()) == *family);
        let weighted = of_family.map(|backend| (backend.address, 1));
        (*family, Arc::new(Ring::new(Declared::new(SEED, ring.declared().ring_size, weighted))))
    };
    WantedService { rings: service.rings.iter().map(ring).collect(), backends, ..service.clone() }
}

/// Whether a plan of some services leaves this write to the next plan of all services.
fn is_left_to_the_whole(write: &Write) -> bool {
    matches!(
        write,
        Write::Settings(_)
            | Write::Address { .. }
            | Write::RemoveAddress { .. }
            | Write::SnatAddress { address: None, .. }
    )
}

#[test]
fn service_that_is_new_or_has_other_vips_or_another_ring_takes_a_plan_of_all() {
    let (mut fake, mut memo, in_use) = (Fake::default(), Memo::default(), FlowUse::default());
    let all = wanted(vec![web(&BOTH)]);
    let plan = plan_again(&all, &fake.image(), &fake, &in_use, NOW, &mut memo).unwrap();
    plan.writes.iter().for_each(|write| fake.apply(write));
    let programmed = Programmed::of(plan, &Programmed::default());
    let backends: Vec<WantedBackend> = BOTH.iter().map(|address| up(address)).collect();
    let mut is_part = |service: WantedService| {
        let part = plan_part(&all, &[Arc::new(service)], &programmed, &fake, &in_use, NOW, &mut memo);
        part.unwrap().is_some()
    };
    assert!(is_part(web(&BOTH)) && is_part(web(&BOTH[1..])));
    assert!(!is_part(service("shop", &["192.0.2.10", "2001:db8::10"], backends.clone(), 31)));
    assert!(!is_part(service("web", &["192.0.2.10"], backends.clone(), 31)));
    assert!(!is_part(service("web", &["192.0.2.10", "2001:db8::10"], backends, 37)));
    assert!(!is_part(WantedService { mode: Mode::DsrL2, ..web(&BOTH) }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_packet_between_two_states_sees_a_backend_that_serves(
        steps in proptest::collection::vec((any_wanted(), any::<bool>()), 1..6),
    ) {
        let mut fake = Fake::default();
        for (n, (wanted, is_scanned)) in (1..).zip(steps) {
            let now_ns = NOW + n * 10 * SECOND;
            let in_use = FlowUse { scanned_at_ns: if is_scanned { now_ns } else { 0 }, ..FlowUse::default() };
            for write in plan(&wanted, &fake.image(), &fake, &in_use, now_ns).unwrap().writes {
                fake.apply(&write);
                fake.assert_every_owner_serves();
                fake.assert_every_previous_is_known();
            }
            check(&fake, &wanted);
            converge(&mut fake, &wanted, &in_use, now_ns, 2);
        }
    }

    #[test]
    fn maps_that_somebody_edited_converge(
        first in any_wanted(),
        second in any_wanted(),
        damages in proptest::collection::vec(any_damage(), 1..12),
    ) {
        let mut fake = Fake::default();
        converge(&mut fake, &first, &FlowUse::default(), NOW, 1);
        for one in &damages {
            damage(&mut fake, one);
        }
        let later = NOW + 100 * SECOND;
        let in_use = FlowUse { scanned_at_ns: later, ..FlowUse::default() };
        converge(&mut fake, &second, &in_use, later, 2);
        check(&fake, &second);
        // Undeclared entries are gone once a pass over the flows has found no flows.
        let after = later + 100 * SECOND;
        let in_use = FlowUse { scanned_at_ns: after, ..FlowUse::default() };
        let plan = converge(&mut fake, &second, &in_use, after, 3);
        prop_assert!(plan.leaving.iter().all(|one| fake.backends[&one.index].way != WAY_NAT));
        let vips: usize = second.services.iter().map(|service| service.vips.len()).sum();
        prop_assert_eq!(fake.services.len(), vips);
    }

    #[test]
    fn some_services_are_planned_alone_as_a_plan_of_all_would_plan_them(
        first in any_wanted(),
        changes in proptest::collection::vec((0..3_usize, proptest::collection::vec(any_backend(), 0..6)), 1..8),
    ) {
        let (mut fake, mut wanted, mut memo, in_use) = (Fake::default(), first, Memo::default(), FlowUse::default());
        let begun = plan_again(&wanted, &fake.image(), &fake, &in_use, NOW, &mut memo).unwrap();
        begun.writes.iter().for_each(|write| fake.apply(write));
        let mut programmed = Programmed::of(begun, &Programmed::default());
        prop_assert_eq!(programmed.image(), fake.image());
        for (at, backends) in changes {
            let Some(len @ 1..) = Some(wanted.services.len()) else { break };
            let unique: BTreeMap<usize, WantedBackend> = backends.into_iter().collect();
            let changed = Arc::new(with_backends(&wanted.services[at % len], unique.into_values().collect()));
            wanted.services[at % len] = changed.clone();
            let part = plan_part(&wanted, &[changed], &programmed, &fake, &in_use, NOW, &mut memo).unwrap().unwrap();
            for write in &part.writes {
                fake.apply(write);
                fake.assert_every_owner_serves();
                fake.assert_every_previous_is_known();
            }
            programmed.take(part);
            prop_assert_eq!(programmed.image(), fake.image());
            check(&fake, &wanted);
            let whole = plan(&wanted, &fake.image(), &fake, &in_use, NOW).unwrap();
            prop_assert!(whole.writes.iter().all(is_left_to_the_whole), "{:?}", whole.writes);
            prop_assert_eq!(memo.audit(&fake, usize::MAX), Audit::default());
        }
        let whole = plan_again(&wanted, &fake.image(), &fake, &in_use, NOW, &mut memo).unwrap();
        whole.writes.iter().for_each(|write| fake.apply(write));
        let whole = Programmed::of(whole, &programmed);
        prop_assert_eq!(whole.image(), fake.image());
        let leaving = |programmed: &Programmed| programmed.leaving().copied().collect::<Vec<_>>();
        prop_assert_eq!(leaving(&whole), leaving(&programmed));
    }
}
