//! Reads one service, with the checks that don't concern other services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use lb_common::flow::Family;

use super::{
    address,
    fields::{Fields, Value},
    health,
};
use crate::{
    model::{
        Affinity, Backend, DEFAULT_RING_SIZE, MAX_RING_SIZE, MAX_WEIGHT, Mode, OnDead, Service, SourceAddress,
        prime::{is_prime, next_prime, previous_prime},
        rules,
    },
    state::{AdminState, ServiceName},
};

pub const KEYS: [&str; 12] = [
    "name",
    "vips",
    "port",
    "mode",
    "source",
    "affinity",
    "ringSize",
    "drainTimeout",
    "settleTime",
    "onDead",
    "health",
    "backends",
];
pub const BACKEND_KEYS: [&str; 6] = ["address", "port", "weight", "tunnel", "zone", "state"];
pub const MODES: [(&str, Mode); 3] = [("nat", Mode::Nat), ("dsr-l2", Mode::DsrL2), ("dsr-ipip", Mode::DsrIpip)];
pub const ON_DEAD: [(&str, OnDead); 3] = [("next", OnDead::Next), ("reset", OnDead::Reset), ("drop", OnDead::Drop)];
pub const SOURCES: [(&str, SourceAddress); 2] =
    [("translate", SourceAddress::Translate), ("keep", SourceAddress::Keep)];
pub const AFFINITIES: [(&str, Affinity); 2] = [("none", Affinity::None), ("client-ip", Affinity::ClientIp)];
pub const STATES: [(&str, AdminState); 3] =
    [("active", AdminState::Active), ("draining", AdminState::Draining), ("disabled", AdminState::Disabled)];

const LATER_MODES: [&str; 1] = ["dsr-gue"];
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(15 * 60);
/// Limited so that a slot's clock can't wrap around: it counts tenths of seconds in 32 bits.
const SETTLE_TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);
pub const DEFAULT_WEIGHT: u32 = 1;
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(15 * 60);
const MAX_NAME: usize = 63;
const MAX_DRAIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A service as far as it could be read, so that the readable parts are checked despite mistakes.
pub struct ReadService<'a> {
    pub at: Value<'a>,
    pub name: Option<(String, Value<'a>)>,
    pub port: Option<u16>,
    /// The VIPs that could be read.
    pub vips: Vec<(IpAddr, Value<'a>)>,
    /// The backends that could be read.
    pub backends: Vec<(Backend, Value<'a>)>,
    pub ring: (Option<u32>, Value<'a>),
    /// Whether the BPF programs must know the addresses of the service's backends.
    pub keeps_source: bool,
    /// `None` after a mistake.
    pub service: Option<Service>,
}

impl ReadService<'_> {
    /// The service's name, or the key of the service if it has no name.
    pub fn label(&self) -> &str {
        self.name.as_ref().map_or(&self.at.key, |(name, _)| name)
    }
}

pub fn read_all<'a>(value: &Value<'a>) -> Option<Vec<ReadService<'a>>> {
    let read = |item: &Value<'a>| match item.fields(&KEYS) {
        Some(fields) => read(&fields),
        None => ReadService {
            at: item.clone(),
            name: None,
            port: None,
            vips: Vec::new(),
            backends: Vec::new(),
            ring: (None, item.clone()),
            keeps_source: false,
            service: None,
        },
    };
    Some(value.items()?.iter().map(read).collect())
}

fn read<'a>(fields: &Fields<'a>) -> ReadService<'a> {
    let at = fields.whole().clone();
    let name = fields.required("name").and_then(|value| Some((name(&value)?, value)));
    let port = fields.required("port").and_then(|value| value.integer(1..=u16::MAX));
    let mode = fields.or("mode", Mode::Nat, mode);
    let source = source(fields, mode);
    let affinity = fields.or("affinity", Affinity::None, |value| value.word(&AFFINITIES));
    let drain_timeout = fields.or("drainTimeout", DEFAULT_DRAIN, |value| value.duration(Duration::ZERO..=MAX_DRAIN));
    let settle_time = fields.or("settleTime", DEFAULT_SETTLE, |value| value.duration(SETTLE_TIMES));
    let on_dead = fields.or("onDead", OnDead::Next, |value| on_dead(value, mode));
    let health = fields.or("health", None, |value| health::read(value).map(Some));
    let (vips, all_vips) = fields.required("vips").map(|value| vips(&value)).unwrap_or_default();
    let backends_at = fields.required("backends");
    let (backends, all_backends) = backends_at.as_ref().map(backends).unwrap_or_default();
    let ring_size = fields.or("ringSize", DEFAULT_RING_SIZE, ring_size);
    let ring = (ring_size, fields.optional("ringSize").unwrap_or_else(|| at.clone()));

    if let (Some(backends_at), true) = (backends_at, all_backends) {
        every_vip_has_backends(&vips, &backends_at, &backends);
    }
    for (backend, at) in &backends {
        if let (Some(mode), Some(port)) = (mode, port) {
            at.holds(rules::port(mode, port, backend.address));
        }
        if let Some(mode) = mode {
            at.holds(rules::tunnel(mode, backend));
        }
    }
    if let Some(size) = ring_size {
        ring.1.holds(rules::ring_size(size, backends.iter().map(|(backend, _)| backend)));
    }

    let service = || {
        let mut sorted_vips: Vec<IpAddr> = vips.iter().map(|(vip, _)| *vip).collect();
        sorted_vips.sort_unstable();
        let mut sorted_backends: Vec<Backend> = backends.iter().map(|(backend, _)| backend.clone()).collect();
        sorted_backends.sort_by_key(|backend| backend.address);
        Some(Service {
            name: ServiceName::of_file(&name.as_ref()?.0),
            vips: all_vips.then_some(sorted_vips)?,
            port: port?,
            mode: mode?,
            source: source?,
            affinity: affinity?,
            ring_size: ring_size?,
            drain_timeout: drain_timeout?,
            settle_time: settle_time?,
            on_dead: on_dead?,
            health: health?,
            backends: all_backends.then_some(sorted_backends)?,
            gone: BTreeSet::new(),
        })
    };
    let service = service();
    let keeps_source = source == Some(SourceAddress::Keep);
    ReadService { at, name, port, vips, backends, ring, keeps_source, service }
}

fn name(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && text.len() <= MAX_NAME && text.bytes().all(good) {
        return Some(text.to_owned());
    }
    value.problem(format!(
        "must be 1 to {MAX_NAME} letters, digits, - _ or ., beginning with a letter or digit, is {text:?}"
    ))
}

fn mode(value: &Value<'_>) -> Option<Mode> {
    if let Some(later) = value.text().filter(|text| LATER_MODES.contains(text)) {
        return value.problem(format!("{later} is not in this version of weir yet; use nat, dsr-l2 or dsr-ipip"));
    }
    value.text()?;
    value.word(&MODES)
}

fn source(fields: &Fields<'_>, mode: Option<Mode>) -> Option<SourceAddress> {
    let value = match fields.optional("source") {
        None => return Some(SourceAddress::Translate),
        Some(value) => value,
    };
    let source = value.word(&SOURCES)?;
    value.holds(mode.map_or(Ok(()), rules::source)).then_some(source)
}

fn on_dead(value: &Value<'_>, mode: Option<Mode>) -> Option<OnDead> {
    let on_dead = value.word(&ON_DEAD)?;
    value.holds(mode.map_or(Ok(()), |mode| rules::on_dead(mode, on_dead))).then_some(on_dead)
}

fn ring_size(value: &Value<'_>) -> Option<u32> {
    let size = value.integer(2..=MAX_RING_SIZE)?;
    if is_prime(size) {
        return Some(size);
    }
    let near: Vec<String> = [previous_prime(size), next_prime(size).filter(|prime| *prime <= MAX_RING_SIZE)]
        .into_iter()
        .flatten()
        .map(|prime| prime.to_string())
        .collect();
    value.problem(format!("must be a prime, is {size}; near it: {}", near.join(", ")))
}

/// The VIPs that could be read, and whether that is all of them.
fn vips<'a>(value: &Value<'a>) -> (Vec<(IpAddr, Value<'a>)>, bool) {
    let Some(items) = value.items() else { return (Vec::new(), false) };
    if items.is_empty() {
        value.problem::<()>("must hold at least one address");
    }
    let count = items.len();
    let vips: Vec<_> = items.into_iter().filter_map(|item| Some((address::read(&item)?, item))).collect();
    let complete = count > 0 && vips.len() == count;
    (vips, complete)
}

/// The backends that could be read, and whether that is all of them.
fn backends<'a>(value: &Value<'a>) -> (Vec<(Backend, Value<'a>)>, bool) {
    let Some(items) = value.items() else { return (Vec::new(), false) };
    let mut backends: Vec<(Backend, Value<'a>)> = Vec::with_capacity(items.len());
    let mut lines: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for item in &items {
        let Some(backend) = backend(item) else { continue };
        if let Some(line) = lines.insert(backend.address, item.at.line) {
            item.problem::<()>(format!("{} is a backend of this service already, in line {line}", backend.address));
        }
        backends.push((backend, item.clone()));
    }
    let complete = backends.len() == items.len();
    (backends, complete)
}

fn backend(value: &Value<'_>) -> Option<Backend> {
    let fields = value.fields(&BACKEND_KEYS)?;
    let address = fields.required("address").and_then(|value| address::read(&value));
    let port = fields.required("port").and_then(|value| value.integer(1..=u16::MAX));
    let weight = fields.or("weight", DEFAULT_WEIGHT, |value| value.integer(0..=MAX_WEIGHT));
    let tunnel = fields.or("tunnel", None, |value| address::read(value).map(Some));
    let zone = fields.or("zone", None, |value| match value.text()? {
        "" => value.problem("must not be empty; leave it out"),
        zone => Some(Some(zone.to_owned())),
    });
    let state = fields.or("state", AdminState::Active, |value| value.word(&STATES));
    Some(Backend {
        address: SocketAddr::new(address?, port?),
        weight: weight?,
        tunnel: tunnel?,
        zone: zone?,
        state: state?,
        is_here: false,
    })
}

/// Records VIPs without backends of their family, which are most likely mistakes, and families
/// whose backends all have weight 0. A service may have no backend at all.
fn every_vip_has_backends(vips: &[(IpAddr, Value<'_>)], at: &Value<'_>, backends: &[(Backend, Value<'_>)]) {
    if backends.is_empty() {
        return;
    }
    let mut weightless = Vec::new();
    for (vip, place) in vips {
        let of_family = || backends.iter().filter(|(backend, _)| backend.address.is_ipv4() == vip.is_ipv4());
        let family = Family::of(vip).name();
        if of_family().next().is_none() {
            place.problem::<()>(format!(
                "the VIP {vip} has no backend of its family: add an {family} backend or take it out"
            ));
        } else if of_family().all(|(backend, _)| backend.weight == 0) && !weightless.contains(&family) {
            at.problem::<()>(format!("every {family} backend has weight 0: at least one must have more"));
            weightless.push(family);
        }
    }
}
