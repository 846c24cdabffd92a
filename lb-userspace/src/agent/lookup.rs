//! What the program would do with a client's SYN, by the functions and the tables that the program itself uses.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    flow::{Addr, Flow, v4_addr, v6_addr},
    hash::{HashKey, slot_of},
    service::{MODE_NAT, Service, address::VIP},
    slot::REJECT,
};

use crate::{
    api::types::LookupView,
    dataplane::{flows::RawFlow, image::Image, plan::address},
};

/// `flow` is the entry of the tables for these addresses, if there is one; `name` names a service by its id.
pub fn lookup(
    image: &Image,
    flow: Option<&RawFlow>,
    client: SocketAddr,
    vip: SocketAddr,
    name: impl Fn(u32) -> Option<String>,
) -> LookupView {
    let mut view = LookupView {
        client,
        vip,
        service: None,
        slot: None,
        backend: None,
        why: String::new(),
        explanation: String::new(),
    };
    let say = |mut view: LookupView, why: &str, explanation: String| {
        why.clone_into(&mut view.why);
        view.explanation = explanation;
        view
    };
    if image.addresses.get(&vip.ip()).is_none_or(|bits| bits & VIP == 0) {
        return say(view, "not a vip", format!("{} is no VIP: its packets pass untouched", vip.ip()));
    }
    let Some(service) = image.services.get(&vip) else {
        return say(view, "port not served", format!("no service has port {} of {}: reset", vip.port(), vip.ip()));
    };
    view.service = name(service.id);
    let is_living = |flow: &&RawFlow| {
        let backend = image.backends.get(&flow.backend_index);
        backend.is_some_and(|backend| backend.is_serving() && backend.generation == flow.generation)
    };
    if let Some(flow) = flow.filter(is_living).filter(|_| service.mode == MODE_NAT) {
        view.backend = Some(flow.backend);
        let explanation = format!(
            "this flow has an entry of its own ({}), seen by the backend as {}; the ring is not asked",
            flow.state.name(),
            flow.source
        );
        return say(view, "flow", explanation);
    }
    let slot = image.settings.as_ref().and_then(|settings| slot(&settings.hash_key, service, client, vip));
    let Some(at) = slot else {
        return say(view, "no backend", "client and VIP are not of one family".to_owned());
    };
    view.slot = Some(at);
    let owner =
        image.rings.get(&service.ring_offset).and_then(|slots| slots.get(at as usize)).map(|slot| slot.current());
    let backend = owner.filter(|owner| *owner != REJECT).and_then(|owner| image.backends.get(&owner));
    match backend.filter(|backend| backend.is_serving()).and_then(address) {
        Some(backend) => {
            view.backend = Some(backend);
            let by = if service.flags & Service::FLAG_CLIENT_AFFINITY != 0 { "client address" } else { "flow" };
            say(
                view,
                "ring",
                format!("the hash of the {by} gives slot {at} of {}, and that is its owner", service.ring_len),
            )
        }
        None => say(view, "no backend", format!("slot {at} of {} rejects: no backend is eligible", service.ring_len)),
    }
}

/// As the program computes it.
fn slot(key: &HashKey, service: &Service, client: SocketAddr, vip: SocketAddr) -> Option<u32> {
    let (src_port_be, dst_port_be) = (client.port().to_be(), vip.port().to_be());
    let hash = match (client.ip(), vip.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            hash(key, service, &Flow { src: v4_addr(src), dst: v4_addr(dst), src_port_be, dst_port_be })
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            hash(key, service, &Flow { src: v6_addr(src), dst: v6_addr(dst), src_port_be, dst_port_be })
        }
        _ => return None,
    };
    Some(slot_of(hash, service.ring_len))
}

fn hash<A: Addr>(key: &HashKey, service: &Service, flow: &Flow<A>) -> u64 {
    if service.flags & Service::FLAG_CLIENT_AFFINITY != 0 {
        A::hash_client(key, &flow.src)
    } else {
        A::hash_flow(key, flow)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        backend::{Backend, WAY_NAT},
        flow::any_addr,
        settings::{LAYOUT, Settings},
        slot::Slot,
    };

    use super::*;
    use crate::dataplane::flows::FlowState;

    const RING: u32 = 31;

    /// Slot n belongs to backend 1 + n % 2; slot 0 rejects.
    fn image() -> Image {
        let mut image = Image::default();
        let vip: SocketAddr = "192.0.2.10:80".parse().unwrap();
        image.settings = Some(Settings {
            hash_key: HashKey::from_seed([3; 16]),
            nat_timeouts: lb_common::nat::NatTimeouts { half_open_ns: 1, established_ns: 1, closing_ns: 1 },
            ports: lb_common::ports::PortPool::new([(1024, 2047)], 1),
            flags: 0,
            layout: LAYOUT,
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
        let owner = |slot: u32| if slot == 0 { REJECT } else { 1 + slot % 2 };
        image.rings.insert(7, (0..RING).map(|slot| Slot::settled(owner(slot))).collect());
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
        lookup(image, flow, client.parse().unwrap(), vip.parse().unwrap(), |_| Some("web".to_owned()))
    }

    #[test]
    fn every_client_port_leads_to_the_owner_of_its_slot() {
        let image = image();
        let mut seen = std::collections::BTreeSet::new();
        for port in 1000..1400 {
            let view = look(&image, &format!("198.51.100.7:{port}"), "192.0.2.10:80", None);
            let slot = view.slot.unwrap();
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
        assert_eq!((view.why.as_str(), view.backend), ("flow", Some(flow.backend)));
        flow.generation = 4;
        let view = look(&image, "198.51.100.7:1000", "192.0.2.10:80", Some(&flow));
        assert_ne!(view.why, "flow");
    }

    #[test]
    fn what_is_not_served_is_said() {
        let image = image();
        assert_eq!(look(&image, "198.51.100.7:1", "192.0.2.10:81", None).why, "port not served");
        assert_eq!(look(&image, "198.51.100.7:1", "192.0.2.11:80", None).why, "not a vip");
    }
}
