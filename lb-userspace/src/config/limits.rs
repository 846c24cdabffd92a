//! Reads `limits`, and compares them with what the services need.

use super::{fields::Value, service};
use crate::model::{Limits, Snat, limits::Limit, need::Need};

pub const KEYS: [&str; 4] = ["backends", "ringSlots", "services", "addresses"];

/// The limits, and the positions of those that the file sets.
#[derive(Default)]
pub struct ReadLimits<'a> {
    pub limits: Limits,
    places: Vec<(Limit, Value<'a>)>,
}

pub fn read<'a>(value: &Value<'a>) -> Option<ReadLimits<'a>> {
    let fields = value.fields(&KEYS)?;
    let default = Limits::default();
    let mut places = Vec::new();
    let mut read = |key, limit: Limit| {
        places.extend(fields.optional(key).map(|value| (limit, value)));
        fields.or(key, default.of(limit), |value| value.integer_because(limit.range(), limit.reason()))
    };
    let (backends, ring_slots, services, addresses) = (
        read("backends", Limit::Backends),
        read("ringSlots", Limit::RingSlots),
        read("services", Limit::Services),
        read("addresses", Limit::Addresses),
    );
    let limits = Limits { backends: backends?, ring_slots: ring_slots?, services: services?, addresses: addresses? };
    Some(ReadLimits { limits, places })
}

/// Records each limit that is too small for all services together: at the limit's value, or, if the
/// file does not set the limit, at the first service with which it is exceeded.
pub fn check(read: &ReadLimits<'_>, services: &[service::ReadService<'_>], snat: Option<&Snat>) {
    let mut need = Need::default();
    need.add_addresses(snat.into_iter().flat_map(|snat| snat.addresses.iter().copied()));
    let mut first: Vec<(Limit, &service::ReadService<'_>)> = Vec::new();
    for one in services {
        let vips = one.vips.iter().map(|(vip, _)| *vip);
        let backends = one.backends.iter().map(|(backend, _)| backend.address.ip());
        need.add_service(vips, one.ring.0.unwrap_or_default(), backends, one.keeps_source);
        for exceeded in need.exceeds(&read.limits) {
            if first.iter().all(|(limit, _)| *limit != exceeded.limit) {
                first.push((exceeded.limit, one));
            }
        }
    }
    for exceeded in need.exceeds(&read.limits) {
        let limit = exceeded.limit;
        if let Some((_, value)) = read.places.iter().find(|(of, _)| *of == limit) {
            value.problem::<()>(exceeded.reason());
        } else if let Some((_, service)) = first.iter().find(|(of, _)| *of == limit) {
            let place = if limit == Limit::RingSlots { &service.ring.1 } else { &service.at };
            let reason = format!("{}; its default is in force, which suffices up to this service", exceeded.reason());
            place.problem_of(limit.key(), reason);
        }
    }
}
