//! What a service must be in itself: the same rules for every source. Each gives the reason why a
//! value is none.

use std::net::SocketAddr;

use super::{Backend, MAX_RING_SIZE, Mode, OnDead, SLOTS_PER_BACKEND, Service, SourceAddress, prime::next_prime};

/// Whether a backend's port fits; `port` is the service's.
pub fn port(mode: Mode, port: u16, backend: SocketAddr) -> Result<(), String> {
    if mode.is_dsr() && backend.port() != port {
        let (mode, own) = (mode.name(), backend.port());
        return Err(format!("{mode} leaves the port as it is: must be {port} as the service's, is {own}"));
    }
    Ok(())
}

pub fn tunnel(mode: Mode, backend: &Backend) -> Result<(), String> {
    if mode != Mode::DsrIpip && backend.tunnel.is_some() {
        return Err(format!("tunnel is for mode dsr-ipip only: {} has no tunnel; leave it out", mode.name()));
    }
    Ok(())
}

pub fn source(mode: Mode) -> Result<(), String> {
    if mode.is_dsr() {
        return Err(format!(
            "is for mode nat only: with {} the backend always sees the client's address; leave it out",
            mode.name()
        ));
    }
    Ok(())
}

pub fn on_dead(mode: Mode, on_dead: OnDead) -> Result<(), String> {
    match (on_dead, mode) {
        (OnDead::Drop, Mode::Nat) => Err("drop is for the modes dsr-l2 and dsr-ipip only; use reset".to_owned()),
        _ => Ok(()),
    }
}

/// Whether a ring has slots enough for the larger family of these backends.
pub fn ring_size<'a>(size: u32, backends: impl IntoIterator<Item = &'a Backend>) -> Result<(), String> {
    let mut families = [0_u32; 2];
    for backend in backends {
        let [v4, v6] = &mut families;
        *(if backend.address.is_ipv4() { v4 } else { v6 }) += 1;
    }
    let largest = families.into_iter().max().unwrap_or_default();
    let least = largest.saturating_mul(SLOTS_PER_BACKEND);
    if size >= least {
        return Ok(());
    }
    let advice = match next_prime(least).filter(|prime| *prime <= MAX_RING_SIZE) {
        Some(prime) => format!("set it to {prime} or a larger prime"),
        None => "split the service".to_owned(),
    };
    Err(format!(
        "a ringSize of {size} is too small for {largest} backends of one family, each needs {SLOTS_PER_BACKEND} slots: {advice}"
    ))
}

/// Every reason why the service can't be served.
pub fn broken(service: &Service) -> Vec<String> {
    let Service { mode, port: number, .. } = *service;
    let named = |backend: &Backend, reason: String| format!("backend {}: {reason}", backend.address);
    let mut reasons = Vec::new();
    if service.source != SourceAddress::default() {
        reasons.extend(source(mode).err().map(|reason| format!("source {reason}")));
    }
    reasons.extend(on_dead(mode, service.on_dead).err().map(|reason| format!("onDead {reason}")));
    reasons.extend(ring_size(service.ring_size, &service.backends).err());
    for backend in &service.backends {
        let of_backend = [port(mode, number, backend.address), tunnel(mode, backend)];
        reasons.extend(of_backend.into_iter().filter_map(Result::err).map(|reason| named(backend, reason)));
    }
    reasons
}
