//! Reads `tunnel`: the peers that may send encapsulated packets to this node, and the source
//! prefixes of the packets that this node sends.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::{flow::Family, limits::MAX_PEERS};

use super::{address, fields::Value};
use crate::model::Tunnel;

pub const KEYS: [&str; 2] = ["peers", "source"];

pub fn read(value: &Value<'_>) -> Option<Tunnel> {
    let fields = value.fields(&KEYS)?;
    let peers = fields.or("peers", Vec::new(), peers);
    let source = fields.or("source", Vec::new(), source);
    Some(Tunnel { peers: peers?, source: source? })
}

fn peers(value: &Value<'_>) -> Option<Vec<IpNet>> {
    let peers = prefixes(value)?;
    for v4 in [true, false] {
        if peers.iter().filter(|peer| peer.addr().is_ipv4() == v4).count() > MAX_PEERS as usize {
            return value.problem(format!("can have at most {MAX_PEERS} prefixes of a family"));
        }
    }
    Some(peers)
}

/// Reads the source prefixes, at most one of each family.
fn source(value: &Value<'_>) -> Option<Vec<IpNet>> {
    let sources = prefixes(value)?;
    for v4 in [true, false] {
        let mut of_family = sources.iter().filter(|source| source.addr().is_ipv4() == v4);
        if let (Some(one), Some(other)) = (of_family.next(), of_family.next()) {
            return value
                .problem(format!("can have one {} prefix, has {one} and {other}", Family::of(&one.addr()).name()));
        }
    }
    Some(sources)
}

fn prefixes(value: &Value<'_>) -> Option<Vec<IpNet>> {
    let items = value.items()?;
    let mut prefixes: Vec<IpNet> = Vec::new();
    for item in &items {
        match prefix(item) {
            Some(prefix) if prefixes.contains(&prefix) => {
                item.problem::<()>(format!("{prefix} is listed twice"));
            }
            Some(prefix) => prefixes.push(prefix),
            None => {}
        }
    }
    (prefixes.len() == items.len()).then_some(prefixes)
}

/// `ADDRESS/LENGTH`, or an address alone.
fn prefix(value: &Value<'_>) -> Option<IpNet> {
    let text = value.text()?;
    let Some((address, len)) = text.split_once('/') else {
        return address::read(value).map(IpNet::from);
    };
    let is_number = len.bytes().all(|byte| byte.is_ascii_digit());
    let (Ok(address), Some(len)) = (address.parse::<IpAddr>(), len.parse::<u8>().ok().filter(|_| is_number)) else {
        return value.problem(format!("must be an address or a prefix, as in 10.0.0.0/24 or fd00::/64, is {text}"));
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let Some(prefix) = IpNet::new(address, len).ok().filter(|_| len > 0) else {
        return value.problem(format!("an {} prefix has 1 to {longest} bits, not {len}", Family::of(&address).name()));
    };
    if prefix.trunc() != prefix {
        return value.problem(format!("has bits set behind the prefix: write {}", prefix.trunc()));
    }
    Some(prefix)
}
