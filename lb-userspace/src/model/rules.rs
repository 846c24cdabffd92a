//! What a service must be in itself: the same rules for every source. Each gives the reason why a
//! value is none.

use std::net::SocketAddr;

use super::{
    prime::{is_prime, next_prime},
    service::{Backend, MAX_RING_SIZE, MAX_WEIGHT, Mode, OnDead, SLOTS_PER_BACKEND, Service, SourceAddress},
};

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
        "a ringSize of {size} is too small for {largest} backends of one family, each needs {SLOTS_PER_BACKEND} \
        slots: {advice}"
    ))
}

/// What a source must see to itself, as code relies on it.
fn shape(service: &Service) -> Vec<String> {
    let ascends = |addresses: &[SocketAddr]| addresses.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
    let vips: Vec<SocketAddr> = service.served().collect();
    let backends: Vec<SocketAddr> = service.backends.iter().map(|backend| backend.address).collect();
    let rules = [
        (!vips.is_empty() && ascends(&vips), "vips must be at least one, sorted, and each once".to_owned()),
        (service.port > 0, "port must not be 0".to_owned()),
        (ascends(&backends), "backends must be sorted by address, and each once".to_owned()),
        (backends.iter().all(|backend| backend.port() > 0), "the port of a backend must not be 0".to_owned()),
        (
            service.backends.iter().all(|backend| backend.weight <= MAX_WEIGHT),
            format!("the weight of a backend must be at most {MAX_WEIGHT}"),
        ),
        (
            (2..=MAX_RING_SIZE).contains(&service.ring_size) && is_prime(service.ring_size),
            format!("ringSize must be a prime up to {MAX_RING_SIZE}, is {}", service.ring_size),
        ),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, reason)| reason).collect()
}

/// Every reason why the service can't be served. The file's reader does not ask: it says where in
/// the file a mistake is.
pub fn broken(service: &Service) -> Vec<String> {
    let Service { mode, port: number, .. } = *service;
    let named = |backend: &Backend, reason: String| format!("backend {}: {reason}", backend.address);
    let mut reasons = shape(service);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn service_that_code_could_not_rely_on_is_broken() {
        let text = "version: 1\ninterfaces: [eth0]\nservices: [{ name: web, vips: [192.0.2.1, \"2001:db8::1\"], port: \
            80, backends: [{ address: 10.0.0.1, port: 80 }, { address: \"fd02::1\", port: 80 }] }]\n";
        let [good] =
            <[Service; 1]>::try_from(crate::config::parse(text, Path::new("weir.yaml")).unwrap().services).unwrap();
        assert_eq!(broken(&good), Vec::<String>::new());
        assert_eq!(broken(&Service { backends: Vec::new(), ..good.clone() }), Vec::<String>::new());
        let reversed = |service: &Service| {
            let (mut vips, mut backends) = (service.vips.clone(), service.backends.clone());
            vips.reverse();
            backends.reverse();
            (vips, backends)
        };
        let (vips, backends) = reversed(&good);
        let heavy = vec![Backend { weight: MAX_WEIGHT + 1, ..good.backends[0].clone() }];
        for (service, reason) in [
            (Service { ring_size: 0, ..good.clone() }, "ringSize must be a prime"),
            (Service { ring_size: 1, ..good.clone() }, "ringSize must be a prime"),
            (Service { ring_size: 1000, ..good.clone() }, "ringSize must be a prime"),
            (Service { vips: Vec::new(), ..good.clone() }, "vips must be"),
            (Service { vips, ..good.clone() }, "vips must be"),
            (Service { backends, ..good.clone() }, "backends must be sorted"),
            (Service { port: 0, ..good.clone() }, "port must not be 0"),
            (Service { backends: heavy, ..good.clone() }, "weight of a backend"),
            (Service { on_dead: OnDead::Drop, ..good.clone() }, "onDead drop is for"),
            (Service { mode: Mode::DsrL2, source: SourceAddress::Keep, ..good.clone() }, "source is for mode nat"),
            (Service { mode: Mode::DsrL2, port: 81, ..good }, "must be 81 as the service's, is 80"),
        ] {
            let found = broken(&service).join("; ");
            assert!(found.contains(reason), "{reason}: {found}");
        }
    }
}
