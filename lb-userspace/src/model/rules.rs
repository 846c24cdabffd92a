//! The rules for a service in itself, the same for every source. Each function returns why a value
//! is not allowed.

use std::net::{IpAddr, SocketAddr};

use super::{
    prime::{is_prime, next_prime},
    service::{Backend, MAX_RING_SIZE, MAX_WEIGHT, Mode, OnDead, SLOTS_PER_BACKEND, Service, SourceAddress},
};

/// Whether an address can be a VIP, a backend, a tunnel endpoint or a SNAT address.
pub fn address(address: IpAddr) -> Result<(), String> {
    unusable(address).map_or(Ok(()), |why| Err(format!("{address} can't be used: {why}")))
}

fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("it is the unspecified address");
    }
    if address.is_loopback() {
        return Some("a loopback address never crosses an interface; name an address of the node itself");
    }
    if address.is_multicast() {
        return Some("it is a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("it is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("0.0.0.0/8 means this network"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local addresses are not routed"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local addresses are not routed"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("an IPv4-mapped address never is on the wire; write the IPv4 address")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Whether a backend's port is allowed; `port` is the service's port.
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

/// Whether a ring has enough slots for these backends, of which each family has a ring of its own.
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

/// Checks what other code relies on, and returns what does not hold. Every source must guarantee
/// it.
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

/// Every reason why the service can't be served. The file's reader does not call this: it checks
/// each value where it stands, to name the line.
pub fn broken(service: &Service) -> Vec<String> {
    let Service { mode, port: number, .. } = *service;
    let named = |backend: &Backend, reason: String| format!("backend {}: {reason}", backend.address);
    let mut reasons = shape(service);
    reasons.extend(service.vips.iter().filter_map(|vip| address(*vip).err()));
    if service.source != SourceAddress::default() {
        reasons.extend(source(mode).err().map(|reason| format!("source {reason}")));
    }
    reasons.extend(on_dead(mode, service.on_dead).err().map(|reason| format!("onDead {reason}")));
    reasons.extend(ring_size(service.ring_size, &service.backends).err());
    for backend in &service.backends {
        let end = backend.tunnel.map_or(Ok(()), address);
        let of_backend =
            [address(backend.address.ip()), port(mode, number, backend.address), tunnel(mode, backend), end];
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
        let local = vec![Backend { address: "127.0.0.1:80".parse().unwrap(), ..good.backends[0].clone() }];
        let heavy = vec![Backend { weight: MAX_WEIGHT + 1, ..good.backends[0].clone() }];
        for (service, reason) in [
            (Service { ring_size: 0, ..good.clone() }, "ringSize must be a prime"),
            (Service { ring_size: 1, ..good.clone() }, "ringSize must be a prime"),
            (Service { ring_size: 1000, ..good.clone() }, "ringSize must be a prime"),
            (Service { vips: Vec::new(), ..good.clone() }, "vips must be"),
            (Service { vips, ..good.clone() }, "vips must be"),
            (Service { backends, ..good.clone() }, "backends must be sorted"),
            (Service { port: 0, ..good.clone() }, "port must not be 0"),
            (Service { backends: local, ..good.clone() }, "127.0.0.1 can't be used: a loopback address"),
            (Service { vips: vec!["224.0.0.1".parse().unwrap()], ..good.clone() }, "it is a multicast address"),
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
