use lb_common::{
    backend::{Backend, WAY_NAT},
    flow::any_addr,
    settings::{LAYOUT, Settings},
    slot::Slot,
};

use super::*;
use crate::dataplane::tables::nat::FlowState;

const RING: u32 = 31;

/// The ring, at offset 7. In `nat`, slot n belongs to backend 1 + n % 2, and slot 0 rejects. In DSR
/// modes, every slot has changed from backend 1 to backend 2.
struct Arena<'a>(&'a Image);

impl Slots for Arena<'_> {
    fn range(&self, offset: u32, len: u32) -> Vec<Slot> {
        let is_nat = self.0.services.values().all(|service| service.mode == MODE_NAT);
        let slot = |number: u32| match number {
            _ if !is_nat => Slot::settled(1).changed(2),
            0 => Slot::settled(REJECT),
            _ => Slot::settled(1 + number % 2),
        };
        (offset - 7..RING.min(offset - 7 + len)).map(slot).collect()
    }
}

fn image() -> Image {
    let mut image = Image::default();
    let vip: SocketAddr = "192.0.2.10:80".parse().unwrap();
    image.settings = Some(Settings {
        hash_key: HashKey::from_seed([3; 16]),
        nat_timeouts: lb_common::nat::NatTimeouts { half_open_ns: 1, established_ns: 1, closing_ns: 1 },
        ports: lb_common::ports::PortPool::new([(1024, 2047)], 1),
        flags: 0,
        layout: LAYOUT,
        vary_source_v4: 0,
        vary_source_v6: 0,
    });
    image.addresses.insert(vip.ip(), VIP);
    let service = Service {
        ring_offset: 7,
        ring_len: RING,
        id: 1,
        stats: 0,
        flags: 0,
        mode: MODE_NAT,
        reserved: [0; 3],
        draining_since_ns: 0,
    };
    image.services.insert(vip, service);
    for index in [1, 2] {
        let address = any_addr(format!("10.2.0.{index}").parse().unwrap());
        let entry = Backend {
            address,
            port_be: 8080_u16.to_be(),
            family: 4,
            way: WAY_NAT,
            flags: Backend::FLAG_SERVING,
            generation: 5,
            service: 1,
            ..Backend::FREE
        };
        image.backends.insert(index, entry);
    }
    image
}

fn look(image: &Image, client: &str, vip: &str, flow: Option<&RawFlow>) -> LookupView {
    let query = LookupQuery { client: client.parse().unwrap(), vip: vip.parse().unwrap(), sequence: None };
    let known = Known { flow: flow.cloned(), ..Known::default() };
    lookup(image, &Arena(image), &known, &query, |_| Some("web".to_owned()))
}

#[test]
fn every_client_port_leads_to_the_owner_of_its_slot() {
    let image = image();
    let mut seen = std::collections::BTreeSet::new();
    for port in 1000..1400 {
        let view = look(&image, &format!("198.51.100.7:{port}"), "192.0.2.10:80", None);
        let slot = view.slot.unwrap().number;
        seen.insert(slot);
        if slot == 0 {
            assert_eq!((view.why.as_str(), view.backend), ("no backend", None));
        } else {
            let expected: SocketAddr = format!("10.2.0.{}:8080", 1 + slot % 2).parse().unwrap();
            assert_eq!((view.why.as_str(), view.backend), ("ring", Some(expected)));
        }
    }
    assert_eq!(seen.len(), RING as usize);
}

#[test]
fn flow_with_an_entry_goes_where_that_says_unless_its_backend_is_another_one_by_now() {
    let image = image();
    let mut flow = RawFlow {
        client: "198.51.100.7:1000".parse().unwrap(),
        vip: "192.0.2.10:80".parse().unwrap(),
        source: "10.0.0.1:1000".parse().unwrap(),
        backend: "10.2.0.2:8080".parse().unwrap(),
        backend_index: 2,
        generation: 5,
        state: FlowState::Established,
        idle_ns: 0,
    };
    let view = look(&image, "198.51.100.7:1000", "192.0.2.10:80", Some(&flow));
    assert_eq!((view.why.as_str(), view.backend), ("nat", Some(flow.backend)));
    assert_eq!(view.under_way.backend, Some(flow.backend));
    flow.state = FlowState::Closing;
    let view = look(&image, "198.51.100.7:1000", "192.0.2.10:80", Some(&flow));
    assert_eq!((view.why.as_str(), view.under_way.why.as_str()), ("ring", "nat"), "a SYN begins anew");
    flow.generation = 4;
    let view = look(&image, "198.51.100.7:1000", "192.0.2.10:80", Some(&flow));
    assert_ne!(view.why, "nat");
    assert_eq!((view.under_way.backend, view.under_way.why.as_str()), (None, "unknown flow"));
}

#[test]
fn what_is_not_served_is_said() {
    let image = image();
    assert_eq!(look(&image, "198.51.100.7:1", "192.0.2.10:81", None).why, "port not served");
    assert_eq!(look(&image, "198.51.100.7:1", "192.0.2.11:80", None).why, "not a vip");
}

fn in_transition() -> Image {
    let mut image = image();
    image.services.values_mut().for_each(|service| service.mode = MODE_DSR_L2);
    image
}

#[test]
fn slot_in_transition_is_told_with_both_owners_and_an_answer_for_new_and_old_connections() {
    let mut image = in_transition();
    let (one, two) = ("10.2.0.1:8080".parse().ok(), "10.2.0.2:8080".parse().ok());
    let view = look(&image, "198.51.100.7:1000", "192.0.2.10:80", None);
    let slot = view.slot.unwrap();
    assert_eq!((slot.state.as_str(), slot.current, slot.previous), ("in transition", two, one));
    assert_eq!((view.backend, view.why.as_str(), view.mode.as_deref()), (two, "current", Some("dsr-l2")));
    assert_eq!((view.under_way.backend, view.under_way.why.as_str()), (one, "previous"));

    image.backends.get_mut(&1).unwrap().flags = Backend::FLAG_RESET;
    let dead = look(&image, "198.51.100.7:1000", "192.0.2.10:80", None);
    assert_eq!((dead.backend, dead.under_way.backend, dead.under_way.why.as_str()), (two, None, "backend dead"));
    assert!(dead.under_way.explanation.contains("10.2.0.1:8080 is dead or gone: reset"), "{dead:?}");
}

#[test]
fn sequence_number_finds_the_syn_that_was_sent_before() {
    let image = in_transition();
    let client = "198.51.100.7:1000".parse().unwrap();
    let vip = "192.0.2.10:80".parse().unwrap();
    let place = locate(&image.settings.unwrap().hash_key, &image.services[&vip], client, vip).unwrap();
    assert_eq!(syn_place(&image, client, vip), Some(Syn::place(place.hash)));
    let known = Known { syn: Some(Syn::new(Syn::fingerprint(place.hash, 99), 1)), ..Known::default() };
    let why = |sequence| lookup(&image, &Arena(&image), &known, &LookupQuery { client, vip, sequence }, |_| None).why;
    assert_eq!([why(None), why(Some(98)), why(Some(99))], ["current", "current", "syn-again"]);
}
