use lb_common::backend::{ADMIN_GONE, WAY_IPIP_V4, WAY_IPIP_V6};

use super::*;

/// The service `web` in DSR.
fn direct(backends: &[&str], on_dead: OnDead) -> WantedService {
    let mut service = web(backends);
    (service.mode, service.on_dead) = (Mode::DsrL2, on_dead);
    service.backends.iter_mut().for_each(|backend| backend.snat.clear());
    service
}

fn index_of(plan: &Plan, address: &str) -> u32 {
    plan.backends[&BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() }]
}

fn slots(fake: &Fake, vip: &str) -> Vec<Slot> {
    let image = fake.image();
    fake.ring(&image.services[&vip.parse().unwrap()])
}

#[test]
fn slot_of_a_dsr_service_keeps_its_previous_owner_until_that_is_gone() {
    let mut fake = Fake::default();
    let all = wanted(vec![direct(&BOTH, OnDead::Next)]);
    let first = converge(&mut fake, &all, &FlowUse::default(), NOW, 1);
    let [gone, stays] = [BOTH[0], BOTH[1]].map(|address| index_of(&first, address));
    let before = slots(&fake, "192.0.2.10:80");
    assert!(before.iter().all(|slot| slot.is_settled()));
    let less = wanted(vec![direct(&BOTH[1..], OnDead::Next)]);
    converge(&mut fake, &less, &FlowUse::default(), NOW + SECOND, 1);
    for (before, now) in before.iter().zip(slots(&fake, "192.0.2.10:80")) {
        let expected = if before.current() == gone { Slot::new(stays, gone, 0) } else { *before };
        assert_eq!(now, expected);
    }
    assert!(fake.clocks.values().all(|clock| *clock == 10_010) && !fake.clocks.is_empty(), "{:?}", fake.clocks);
    // Declared again while it drains, the backend keeps its index, and flows begun meanwhile are
    // exceptions.
    converge(&mut fake, &all, &FlowUse::default(), NOW + 2 * SECOND, 1);
    for (before, now) in before.iter().zip(slots(&fake, "192.0.2.10:80")) {
        assert_eq!(now, if before.current() == gone { Slot::new(gone, gone, Slot::TRACKED) } else { *before });
    }
    converge(&mut fake, &less, &FlowUse::default(), NOW + 3 * SECOND, 1);
    let late = converge(&mut fake, &less, &FlowUse::default(), NOW + 70 * SECOND, 1);
    assert_eq!((late.leaving.len(), fake.image().backends[&gone].family), (0, 0));
    for (before, now) in before.iter().zip(slots(&fake, "192.0.2.10:80")) {
        assert_eq!(now, if before.current() == gone { Slot::new(stays, stays, Slot::TRACKED) } else { *before });
    }
}

#[test]
fn flows_of_a_backend_that_is_gone_are_ended_as_its_service_says_for_a_settle_time() {
    for (on_dead, flag) in [(OnDead::Reset, Backend::FLAG_RESET), (OnDead::Drop, Backend::FLAG_DROP)] {
        let mut fake = Fake::default();
        let first = converge(&mut fake, &wanted(vec![direct(&BOTH, on_dead)]), &FlowUse::default(), NOW, 1);
        let gone = index_of(&first, BOTH[0]);
        let less = wanted(vec![direct(&BOTH[1..], on_dead)]);
        converge(&mut fake, &less, &FlowUse::default(), NOW, 1);
        let ended = converge(&mut fake, &less, &FlowUse::default(), NOW + 61 * SECOND, 1);
        let entry = fake.image().backends[&gone];
        assert_eq!((entry.admin, entry.flags, entry.family), (ADMIN_GONE, flag, 4));
        assert_eq!((ended.leaving.len(), ended.ends.values().min().copied()), (0, Some(NOW + 90 * SECOND)));
        assert!(slots(&fake, "192.0.2.10:80").iter().any(|slot| slot.previous() == gone));
        converge(&mut fake, &less, &FlowUse::default(), NOW + 90 * SECOND, 1);
        assert_eq!(fake.image().backends[&gone].family, 0);
        assert!(slots(&fake, "192.0.2.10:80").iter().all(|slot| slot.previous() != gone));
    }
}

#[test]
fn dead_backend_loses_its_flows_only_while_half_of_its_service_is_up() {
    const FOUR: [&str; 5] = ["10.2.0.11:80", "10.2.0.12:80", "10.2.0.13:80", "10.2.0.14:80", "[fd02::11]:80"];
    let mut service = direct(&FOUR, OnDead::Reset);
    let flags = |service: &WantedService| {
        let mut fake = Fake::default();
        let plan = converge(&mut fake, &wanted(vec![service.clone()]), &FlowUse::default(), NOW, 1);
        fake.image().backends[&index_of(&plan, FOUR[0])].flags
    };
    let set = |service: &mut WantedService, at: usize, health: Health| {
        (service.backends[at].health, service.backends[at].is_eligible) = (health, health == Health::Up);
    };
    set(&mut service, 0, Health::Dead);
    assert_eq!(flags(&service), Backend::FLAG_RESET);
    set(&mut service, 1, Health::Down);
    assert_eq!(flags(&service), Backend::FLAG_RESET);
    set(&mut service, 2, Health::Dead);
    assert_eq!(flags(&service), Backend::FLAG_SERVING, "fewer than half are up: the fault may be this node's");
    set(&mut service, 2, Health::Up);
    service.on_dead = OnDead::Next;
    assert_eq!(flags(&service), 0);
    set(&mut service, 0, Health::Down);
    assert_eq!(flags(&service), Backend::FLAG_SERVING, "it answers, though not as it should");
    set(&mut service, 0, Health::Dead);
    service.mode = Mode::Nat;
    assert_eq!(flags(&service), Backend::FLAG_SERVING);
    service.on_dead = OnDead::Reset;
    assert_eq!(flags(&service), Backend::FLAG_RESET);
}

#[test]
fn tunnel_that_moves_to_another_address_leaves_its_backend_the_same() {
    let mut fake = Fake::default();
    let mut service = web(&BOTH[..1]);
    service.vips.truncate(1);
    service.rings.remove(&Family::V6);
    service.mode = Mode::DsrIpip;
    let way = |fake: &mut Fake, service: &WantedService| {
        let plan = converge(fake, &wanted(vec![service.clone()]), &FlowUse::default(), NOW, 1);
        let index = index_of(&plan, BOTH[0]);
        let backend = fake.image().backends[&index];
        assert_eq!(plan.leaving, []);
        (index, backend.generation, backend.way, backend.tunnel[0], backend.tunnel_source[0])
    };
    let v4 = |text: &str| lb_common::flow::v4_addr(text.parse().unwrap());
    service.backends[0].snat.clear();
    service.backends[0].tunnel = Some(TunnelEnds { to: "10.2.0.11".parse().unwrap(), source: None });
    let (index, generation, ..) = way(&mut fake, &service);
    assert_eq!(way(&mut fake, &service), (index, generation, WAY_IPIP_V4, v4("10.2.0.11"), 0));
    let (to, source) = ("fd00::1".parse().unwrap(), Some("fd00::9".parse().unwrap()));
    service.backends[0].tunnel = Some(TunnelEnds { to, source });
    let words = lb_common::flow::any_addr(to);
    assert_eq!(way(&mut fake, &service), (index, generation, WAY_IPIP_V6, words[0], words[0]));
}

#[test]
fn peers_may_send_packets_in_tunnels_to_every_address_of_the_node() {
    let mut fake = Fake::default();
    let mut none = wanted(Vec::new());
    none.peers.insert("10.0.0.0/24".parse().unwrap());
    converge(&mut fake, &none, &FlowUse::default(), NOW, 1);
    let image = fake.image();
    assert_eq!(image.peers, none.peers);
    assert_eq!(image.settings.unwrap().flags, settings::Settings::FLAG_TUNNEL);
    let bits = service::address::TUNNEL | service::address::NODE;
    assert_eq!(image.addresses, BTreeMap::from([("10.0.0.1".parse().unwrap(), bits)]));
    none.peers.clear();
    converge(&mut fake, &none, &FlowUse::default(), NOW, 1);
    assert_eq!((fake.image().addresses.len(), fake.image().settings.unwrap().flags), (0, 0));
}

#[test]
fn service_that_begins_has_the_owners_of_the_whole_ring_at_once_and_tracks_what_it_sees_begin() {
    let mut fake = Fake::default();
    let mut memo = Memo::default();
    memo.warming_up.insert(ServiceName::of_file("web"));
    let step = |fake: &mut Fake, memo: &mut Memo, service: WantedService| {
        let plan = plan_again(&wanted(vec![service]), &fake.image(), &*fake, &FlowUse::default(), NOW, memo).unwrap();
        plan.writes.iter().for_each(|write| fake.apply(write));
        plan
    };
    // The second backend has no verdict yet.
    let mut first_up = direct(&BOTH, OnDead::Next);
    first_up.backends[1].is_eligible = false;
    step(&mut fake, &mut memo, first_up);
    let plan = step(&mut fake, &mut memo, direct(&BOTH, OnDead::Next));
    let [first, second] = [BOTH[0], BOTH[1]].map(|address| index_of(&plan, address));
    let whole = slots(&fake, "192.0.2.10:80");
    for owner in [first, second] {
        assert!(whole.contains(&Slot::new(owner, owner, Slot::TRACKED)), "{whole:?}");
    }
    assert!(whole.iter().all(|slot| !slot.in_transition() && slot.flags() == Slot::TRACKED), "{whole:?}");

    memo.warming_up.clear();
    step(&mut fake, &mut memo, direct(&BOTH, OnDead::Next));
    assert_eq!(slots(&fake, "192.0.2.10:80"), whole, "that it has begun changes nothing");
    step(&mut fake, &mut memo, direct(&BOTH[1..], OnDead::Next));
    assert!(
        slots(&fake, "192.0.2.10:80").contains(&Slot::new(second, first, Slot::TRACKED)),
        "a change like any other"
    );
}
