//! The filter for the BPF programs: it passes the events that any listener wants.

use std::net::IpAddr;

use lb_common::{
    flow::{Family, any_addr},
    trace::TraceFilter,
};

use crate::view::trace::{End, TraceQuery};

/// The narrowest filter that passes every event that any of `queries` wants; `number` is the number
/// of the trace.
pub fn common<'a>(number: u32, queries: impl Iterator<Item = &'a TraceQuery> + Clone) -> TraceFilter {
    let client = agreed(queries.clone().map(|query| query.client));
    let vip = agreed(queries.clone().map(|query| query.vip));
    let family =
        agreed(queries.clone().map(|query| query.client.or(query.vip).map(|end| Family::of(&end.ip).number())));
    let words = |end: Option<End>| end.map(|end| any_addr(end.ip)).unwrap_or_default();
    let port_be = |end: Option<End>| end.and_then(|end| end.port).unwrap_or_default().to_be();
    TraceFilter {
        client: words(client),
        vip: words(vip),
        client_port_be: port_be(client),
        vip_port_be: port_be(vip),
        family: family.unwrap_or_default(),
        drops_only: u8::from(queries.clone().all(|query| query.drops_only)),
        rate: queries.map(TraceQuery::rate).fold(0, u32::saturating_add),
        number,
        ..TraceFilter::default()
    }
}

/// The value that all `wishes` have in common. Two ends with the same address but different ports
/// have the address in common.
fn agreed<T: Narrow>(wishes: impl Iterator<Item = Option<T>>) -> Option<T> {
    wishes.reduce(|one, other| one?.and(&other?)).flatten()
}

trait Narrow: Sized {
    fn and(self, other: &Self) -> Option<Self>;
}

impl Narrow for u8 {
    fn and(self, other: &Self) -> Option<Self> {
        (self == *other).then_some(self)
    }
}

impl Narrow for End {
    fn and(self, other: &Self) -> Option<Self> {
        let same: Option<IpAddr> = (self.ip == other.ip).then_some(self.ip);
        same.map(|ip| End { ip, port: self.port.filter(|port| other.port == Some(*port)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(client: &str, vip: &str, drops_only: bool) -> TraceQuery {
        let end = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        TraceQuery { client: end(client), vip: end(vip), drops_only, rate: Some(10) }
    }

    fn filter(queries: &[TraceQuery]) -> TraceFilter {
        common(0, queries.iter())
    }

    #[test]
    fn filter_of_one_is_as_narrow_as_its_query() {
        let asked = filter(&[query("2001:db8:1::7", "[2001:db8::10]:80", true)]);
        assert_eq!(asked.client, any_addr("2001:db8:1::7".parse().unwrap()));
        assert_eq!(asked.vip, any_addr("2001:db8::10".parse().unwrap()));
        assert_eq!((asked.client_port_be, asked.vip_port_be), (0, 80_u16.to_be()));
        assert_eq!((asked.family, asked.drops_only, asked.rate), (6, 1, 10));
        let all = filter(&[TraceQuery::default()]);
        assert_eq!(all, TraceFilter { rate: 100, ..TraceFilter::default() });
    }

    #[test]
    fn filter_of_several_lets_through_what_each_wants() {
        let both =
            filter(&[query("198.51.100.7:1", "192.0.2.10:80", true), query("198.51.100.7:2", "192.0.2.11", false)]);
        assert_eq!((both.client, both.client_port_be), (any_addr("198.51.100.7".parse().unwrap()), 0));
        assert_eq!((both.vip, both.vip_port_be), ([0; 4], 0));
        assert_eq!((both.family, both.drops_only, both.rate), (4, 0, 20));
        let mixed = filter(&[query("198.51.100.7", "", true), query("2001:db8:1::7", "", true), query("", "", true)]);
        assert_eq!((mixed.client, mixed.family, mixed.drops_only), ([0; 4], 0, 1));
    }
}
