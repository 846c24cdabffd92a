//! Which addresses can be a VIP, a backend or a SNAT address.

use std::net::IpAddr;

use super::fields::Value;

/// Reads a routable unicast address, as every VIP, backend and SNAT address must be.
pub fn read(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        return value.problem(format!("must be an IPv4 or IPv6 address, is {text}"));
    };
    match unusable(address) {
        None => Some(address),
        Some(why) => value.problem(format!("{address} can't be used: {why}")),
    }
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
