//! Reads an address that can be a VIP, a backend or a SNAT address.

use std::net::IpAddr;

use super::fields::Value;
use crate::model::rules;

/// Reads a routable unicast address, as every VIP, backend and SNAT address must be.
pub fn read(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        return value.problem(format!("must be an IPv4 or IPv6 address, is {text}"));
    };
    match rules::address(address) {
        Ok(()) => Some(address),
        Err(why) => value.problem(why),
    }
}
