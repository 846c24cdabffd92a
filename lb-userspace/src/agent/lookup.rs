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
