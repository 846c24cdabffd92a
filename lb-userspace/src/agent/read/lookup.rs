//! What the BPF program would do with packets of a flow, computed with the functions and the tables
//! that the program itself uses.

mod rules;

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    flow::{Addr, Flow, v4_addr, v6_addr},
    hash::{HashKey, slot_of},
    service::{MODE_DSR_IPIP, MODE_DSR_L2, MODE_NAT, Service, address::VIP},
    slot::{REJECT, Slot},
    syn::Syn,
    trace::rule,
    verdict::Reason,
};

use self::rules::{LookupOutcome, Rules};
use crate::{
    agent::trace::slot_state,
    dataplane::{
        image::{Image, Slots},
        plan::address,
        tables::{
            exceptions::FlowExceptions,
            nat::{FlowState, RawFlow},
        },
    },
    view::{
        trace::SlotView,
        types::{Choice, LookupQuery, LookupView},
    },
};

/// The entries of the flow in the flow tables.
#[derive(Default)]
pub struct Known {
    /// The flow's entry in `NAT_*`.
    pub flow: Option<RawFlow>,
    pub exceptions: FlowExceptions,
    /// The value at the flow's place in `SYNS`.
    pub syn: Option<Syn>,
}

/// The view of a flow for `weir lookup`. `name` returns the name of a service by its id. The caller
/// fills in the view's `entries`.
pub fn lookup(
    image: &Image,
    slots: &dyn Slots,
    known: &Known,
    query: &LookupQuery,
    name: impl Fn(u32) -> Option<String>,
) -> LookupView {
    let LookupQuery { client, vip, .. } = *query;
    let view = LookupView {
        client,
        vip,
        service: None,
        mode: None,
        slot: None,
        backend: None,
        why: String::new(),
        explanation: String::new(),
        under_way: Choice::default(),
        entries: Vec::new(),
    };
    let unserved = |view: LookupView, why: &str, explanation: String| {
        let both = Choice { backend: None, why: why.to_owned(), explanation };
        with(view, both.clone(), both)
    };
    if image.addresses.get(&vip.ip()).is_none_or(|bits| bits & VIP == 0) {
        return unserved(view, "not a vip", format!("{} is no VIP: its packets pass untouched", vip.ip()));
    }
    let Some(service) = image.services.get(&vip) else {
        return unserved(view, "port not served", format!("no service has port {} of {}: reset", vip.port(), vip.ip()));
    };
    let view = LookupView { service: name(service.id), mode: Some(mode(service).to_owned()), ..view };
    let place = image.settings.as_ref().and_then(|settings| locate(&settings.hash_key, service, client, vip));
    let slot_at = |number: u32| slots.range(service.ring_offset.checked_add(number)?, 1).first().copied();
    let found = place.and_then(|place| Some((place, slot_at(place.slot)?)));
    let Some((place, slot)) = found else {
        return unserved(
            view,
            "no backend",
            "the service has no ring, or client and VIP are not of one family".to_owned(),
        );
    };
    let view = LookupView { slot: Some(slot_view(image, service, place.slot, slot)), ..view };
    let ring = RingOf { image, service, number: place.slot };
    if service.mode == MODE_NAT {
        let (new, under_way) = ring.nat(slot, known.flow.as_ref());
        return with(view, new, under_way);
    }
    let first =
        known.syn.filter(|syn| query.sequence.is_some_and(|sequence| syn.is(Syn::fingerprint(place.hash, sequence))));
    let rules = Rules { backends: &image.backends, service: service.id, slot, exceptions: &known.exceptions, first };
    with(view, ring.choice(rules.opens(), slot), ring.choice(rules.goes_on(query.sequence), slot))
}

fn with(view: LookupView, new: Choice, under_way: Choice) -> LookupView {
    LookupView { backend: new.backend, why: new.why, explanation: new.explanation, under_way, ..view }
}

/// Where the fingerprint of a SYN of this flow is kept; `None` if the flow belongs to no service.
pub fn syn_place(image: &Image, client: SocketAddr, vip: SocketAddr) -> Option<u32> {
    let (settings, service) = (image.settings.as_ref()?, image.services.get(&vip)?);
    locate(&settings.hash_key, service, client, vip).map(|place| Syn::place(place.hash))
}

/// A slot of a service, used to write sentences about it.
struct RingOf<'a> {
    image: &'a Image,
    service: &'a Service,
    number: u32,
}

impl RingOf<'_> {
    /// The choices for a SYN and for a packet of an existing connection.
    fn nat(&self, slot: Slot, flow: Option<&RawFlow>) -> (Choice, Choice) {
        let ring = self.choice(LookupOutcome::To { index: slot.current(), rule: rule::RING }, slot);
        let is_living = |flow: &&RawFlow| {
            let backend = self.image.backends.get(&flow.backend_index);
            backend.is_some_and(|backend| backend.is_serving() && backend.generation == flow.generation)
        };
        if let Some(flow) = flow.filter(is_living) {
            let (state, source) = (flow.state.name(), flow.source);
            let explanation = format!(
                "the flow has an entry of its own ({state}), seen by the backend as {source}; the ring is not asked"
            );
            let known = Choice { backend: Some(flow.backend), why: name_of(rule::NAT), explanation };
            // A SYN with the tuple of a connection that is over starts a new connection.
            let new = if flow.state == FlowState::Closing { ring } else { known.clone() };
            return (new, known);
        }
        let unknown = Choice {
            backend: None,
            why: "unknown flow".to_owned(),
            explanation: "the flow has no entry, and in mode nat every flow has one: reset".to_owned(),
        };
        (ring, unknown)
    }

    fn choice(&self, outcome: LookupOutcome, slot: Slot) -> Choice {
        let (number, len) = (self.number, self.service.ring_len);
        let choice = |backend, why: &str, explanation| Choice { backend, why: why.to_owned(), explanation };
        match outcome {
            LookupOutcome::To { index: REJECT, .. } => {
                choice(None, "no backend", format!("slot {number} of {len} rejects: no backend is eligible: reset"))
            }
            LookupOutcome::To { index, rule } => {
                let backend = self.image.backends.get(&index).filter(|backend| backend.is_serving());
                match backend.and_then(address) {
                    Some(backend) => choice(Some(backend), &name_of(rule), self.sentence(rule, slot)),
                    None => {
                        choice(None, "no backend", format!("the owner of slot {number} of {len} does not serve: reset"))
                    }
                }
            }
            LookupOutcome::Ends { index, reason } => {
                let at = self.image.backends.get(&index).and_then(address);
                let at = at.map_or_else(|| "its backend".to_owned(), |at| format!("its backend {at}"));
                let becomes =
                    if reason == Reason::BackendDead { "reset (onDead: reset)" } else { "dropped (onDead: drop)" };
                choice(None, "backend dead", format!("{at} is dead or gone: {becomes}"))
            }
        }
    }

    fn sentence(&self, rule: u8, slot: Slot) -> String {
        let by = if self.service.flags & Service::FLAG_CLIENT_AFFINITY != 0 { "client address" } else { "flow" };
        let (number, len) = (self.number, self.service.ring_len);
        let state = slot_state(slot);
        if rule == rule::RING {
            return format!("the hash of the {by} gives slot {number} of {len}, which is {state}: its owner");
        }
        format!("slot {number} of {len} is {state}; {}", rule::help(rule))
    }
}

fn name_of(rule: u8) -> String {
    rule::name(rule).unwrap_or("unknown").to_owned()
}

const fn mode(service: &Service) -> &'static str {
    match service.mode {
        MODE_NAT => "nat",
        MODE_DSR_L2 => "dsr-l2",
        MODE_DSR_IPIP => "dsr-ipip",
        _ => "unknown",
    }
}

fn slot_view(image: &Image, service: &Service, number: u32, slot: Slot) -> SlotView {
    let owner = |index: u32| image.backends.get(&index).and_then(address);
    SlotView {
        number,
        ring_size: service.ring_len,
        state: slot_state(slot).to_owned(),
        current: owner(slot.current()),
        previous: owner(slot.previous()),
    }
}

/// The hash of a flow, and its slot.
#[derive(Clone, Copy)]
struct HashAndSlot {
    hash: u64,
    slot: u32,
}

/// Computes the hash and the slot as the BPF program does.
fn locate(key: &HashKey, service: &Service, client: SocketAddr, vip: SocketAddr) -> Option<HashAndSlot> {
    let (src_port_be, dst_port_be) = (client.port().to_be(), vip.port().to_be());
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Some(placed(key, service, &Flow { src: v4_addr(src), dst: v4_addr(dst), src_port_be, dst_port_be }))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Some(placed(key, service, &Flow { src: v6_addr(src), dst: v6_addr(dst), src_port_be, dst_port_be }))
        }
        _ => None,
    }
}

fn placed<A: Addr>(key: &HashKey, service: &Service, flow: &Flow<A>) -> HashAndSlot {
    let hash = A::hash_flow(key, flow);
    let by = if service.flags & Service::FLAG_CLIENT_AFFINITY != 0 { A::hash_client(key, &flow.src) } else { hash };
    HashAndSlot { hash, slot: slot_of(by, service.ring_len) }
}

#[cfg(test)]
mod tests;
