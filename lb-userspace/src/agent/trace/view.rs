//! Converts a trace event to readable form.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use lb_common::{
    backend::Backend,
    flow::{AnyAddr, Family, ip_addr},
    service::Service,
    slot::{REJECT, Slot},
    trace::{NO_SERVICE, TraceEvent, hook_name, rule},
    verdict::Reason,
};

use crate::{
    clock::{boottime_ns, unix_now},
    dataplane::{image::Image, plan::address},
    node::interfaces::Interface,
    view::trace::{Ends, SlotView, TraceView},
};

/// The names of services, backends and interfaces, which an event gives by number.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// VIPs by the index of their counters.
    vips: BTreeMap<u32, Vip>,
    /// Backends by index.
    backends: Arc<BTreeMap<u32, SocketAddr>>,
    interfaces: BTreeMap<u32, String>,
}

#[derive(Clone, Debug)]
struct Vip {
    at: SocketAddr,
    service: String,
    entry: Service,
}

impl Names {
    /// `name` returns the name of a service by its id.
    pub fn new(image: &Image, name: impl Fn(u32) -> String, interfaces: &BTreeMap<u32, Interface>) -> Self {
        let vip = |(at, entry): (&SocketAddr, &Service)| {
            (entry.stats, Vip { at: *at, service: name(entry.id), entry: *entry })
        };
        let backend = |(index, backend): (&u32, &Backend)| Some((*index, address(backend)?));
        Self {
            vips: image.services.iter().map(vip).collect(),
            backends: Arc::new(image.backends.iter().filter_map(backend).collect()),
            interfaces: interfaces.iter().map(|(index, interface)| (*index, interface.name.clone())).collect(),
        }
    }

    fn backend(&self, index: u32) -> Option<SocketAddr> {
        self.backends.get(&index).copied()
    }
}

/// When this machine was started, in seconds since 1970.
pub fn unix_epoch_of_boot() -> f64 {
    unix_now() - boottime_ns() as f64 / 1e9
}

/// The view of `event`; `epoch` is the result of [`unix_epoch_of_boot`].
pub fn view(event: &TraceEvent, names: &Names, epoch: f64) -> TraceView {
    let is_tcp = event.src_port_be != 0 || event.dst_port_be != 0;
    let vip = Some(event.stats).filter(|stats| *stats != NO_SERVICE).and_then(|stats| names.vips.get(&stats));
    let reason = Reason::ALL.iter().find(|reason| **reason as u32 == event.reason);
    TraceView {
        at: epoch + event.time_ns as f64 / 1e9,
        interface: names.interfaces.get(&event.ifindex).cloned().unwrap_or_else(|| format!("index {}", event.ifindex)),
        hook: hook_name(event.hook).to_owned(),
        src: end(event, event.src, event.src_port_be),
        dst: end(event, event.dst, event.dst_port_be),
        to: (event.to_dst != AnyAddr::default()).then(|| Ends {
            src: end(event, event.to_src, event.to_src_port_be),
            dst: end(event, event.to_dst, event.to_dst_port_be),
        }),
        tcp_flags: is_tcp.then(|| tcp_flags(event.tcp_flags)),
        sequence: is_tcp.then_some(event.sequence),
        length: event.len,
        service: vip.map(|vip| vip.service.clone()),
        vip: vip.map(|vip| vip.at),
        slot: vip
            .filter(|_| event.rule != rule::NONE && event.rule != rule::NAT)
            .and_then(|vip| slot_view(event, &vip.entry, names)),
        backend: names.backend(event.backend),
        rule: rule::name(event.rule).map(str::to_owned),
        why: rule::help(event.rule).to_owned(),
        verdict: reason.map_or("unknown", |reason| reason.kind().name()).to_owned(),
        reason: reason.map_or_else(|| format!("reason {}", event.reason), |reason| reason.name().to_owned()),
        help: reason.map_or("", |reason| reason.help()).to_owned(),
        missed: u64::from(event.missed),
    }
}

fn end(event: &TraceEvent, address: AnyAddr, port_be: u16) -> SocketAddr {
    let family = Family::from_number(event.family).unwrap_or(Family::V6);
    SocketAddr::new(ip_addr(family, address), u16::from_be(port_be))
}

/// `None` if the service has a different ring by now.
fn slot_view(event: &TraceEvent, service: &Service, names: &Names) -> Option<SlotView> {
    let number = event.slot.checked_sub(service.ring_offset).filter(|number| *number < service.ring_len)?;
    let slot = Slot(event.word);
    let owner = |index: u32| Some(index).filter(|index| *index != REJECT).and_then(|index| names.backend(index));
    Some(SlotView {
        number,
        ring_size: service.ring_len,
        state: slot_state(slot).to_owned(),
        current: owner(slot.current()),
        previous: owner(slot.previous()),
    })
}

/// The state of `slot` in a word or two.
pub const fn slot_state(slot: Slot) -> &'static str {
    if slot.is_settled() {
        "settled"
    } else if slot.has(Slot::SETTLING) {
        "settling"
    } else if slot.in_transition() {
        "in transition"
    } else {
        "tracked"
    }
}

fn tcp_flags(bits: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    // In the customary order: SYN+ACK, FIN+ACK, PSH+ACK.
    let set: Vec<&str> =
        NAMES.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "none".to_owned() } else { set.join("+") }
}

#[cfg(test)]
mod tests {
    use lb_common::{backend::Backend, flow::any_addr, service::MODE_DSR_L2, trace::HOOK_XDP};

    use super::*;

    fn names() -> Names {
        let mut image = Image::default();
        let entry = Service {
            ring_offset: 100,
            ring_len: 31,
            id: 1,
            stats: 5,
            flags: 0,
            mode: MODE_DSR_L2,
            reserved: [0; 3],
            draining_since_ns: 0,
        };
        image.services.insert("[2001:db8::10]:80".parse().unwrap(), entry);
        for index in [1, 2] {
            let address = any_addr(format!("fd02::{index}").parse().unwrap());
            image.backends.insert(index, Backend { address, port_be: 80_u16.to_be(), family: 6, ..Backend::FREE });
        }
        Names::new(&image, |id| format!("service-{id}"), &BTreeMap::new())
    }

    fn event() -> TraceEvent {
        TraceEvent {
            time_ns: 5_500_000_000,
            word: Slot::settled(1).changed(2).0,
            src: any_addr("2001:db8:1::7".parse().unwrap()),
            dst: any_addr("2001:db8::10".parse().unwrap()),
            to_src: any_addr("fd02::9".parse().unwrap()),
            to_dst: any_addr("fd02::1".parse().unwrap()),
            src_port_be: 40000_u16.to_be(),
            dst_port_be: 80_u16.to_be(),
            to_src_port_be: 1024_u16.to_be(),
            to_dst_port_be: 8080_u16.to_be(),
            family: 6,
            tcp_flags: 0x12,
            hook: HOOK_XDP,
            rule: rule::PREVIOUS,
            ifindex: 3,
            len: 60,
            stats: 5,
            slot: 107,
            backend: 1,
            reason: Reason::ToBackend as u32,
            sequence: 9,
            missed: 4,
            reserved: 0,
        }
    }

    #[test]
    fn event_names_service_slot_owners_and_rule() {
        let view = view(&event(), &names(), 1000.0);
        assert_eq!((view.at, view.interface.as_str(), view.hook.as_str()), (1005.5, "index 3", "xdp"));
        assert_eq!(view.src.to_string(), "[2001:db8:1::7]:40000");
        assert_eq!(view.to.unwrap().dst.to_string(), "[fd02::1]:8080");
        assert_eq!((view.tcp_flags.as_deref(), view.sequence), (Some("SYN+ACK"), Some(9)));
        assert_eq!(view.service.as_deref(), Some("service-1"));
        let slot = view.slot.unwrap();
        assert_eq!((slot.number, slot.ring_size, slot.state.as_str()), (7, 31, "in transition"));
        assert_eq!(slot.current.unwrap().to_string(), "[fd02::2]:80");
        assert_eq!((view.backend, view.rule.as_deref()), (slot.previous, Some("previous")));
        assert_eq!((view.verdict.as_str(), view.reason.as_str(), view.missed), ("forward", "to_backend", 4));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let stranger = TraceEvent {
            word: 0,
            to_dst: [0; 4],
            src_port_be: 0,
            dst_port_be: 0,
            stats: NO_SERVICE,
            backend: 0,
            rule: rule::NONE,
            reason: Reason::NotVip as u32,
            ..event()
        };
        let view = view(&stranger, &names(), 0.0);
        assert_eq!((view.to, view.tcp_flags, view.sequence, view.slot), (None, None, None, None));
        assert_eq!((view.service, view.backend, view.rule), (None, None, None));
        assert_eq!((view.why.as_str(), view.verdict.as_str()), ("", "pass"));
    }
}
