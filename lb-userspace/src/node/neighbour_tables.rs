//! The kernel's neighbour tables: their limits, and what to do if a limit is too low. All network
//! namespaces share one table for each family.

use std::{collections::BTreeMap, net::IpAddr};

use futures_util::StreamExt;
use lb_common::flow::Family;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage},
    },
};

use super::{
    interfaces::{Netlink, NetlinkError, request},
    neighbours::{NeighbourRefusal, NextHop},
};

/// One neighbour table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourTable {
    /// `gc_thresh3`: how many entries the kernel keeps, apart from permanent entries and those that
    /// are marked as learned elsewhere.
    pub limit: u32,
    /// How many entries there are now, in all network namespaces and of every kind.
    pub entries: u32,
}

impl Netlink {
    /// The tables of both families, or of one if the kernel lacks the other.
    pub async fn neighbour_tables(&self) -> Result<BTreeMap<Family, NeighbourTable>, NetlinkError> {
        let what = "read the limits of the neighbour tables";
        let ask = NeighbourTableMessage::default();
        let mut ask = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbourTable(ask));
        ask.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(ask).map_err(request(what))?;
        let mut tables = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbourTable(message)) => {
                    tables.extend(table(&message));
                }
                NetlinkPayload::Error(error) => return Err(request(what)(rtnetlink::Error::NetlinkError(error))),
                _ => {}
            }
        }
        Ok(tables)
    }
}

/// `None` for the messages that describe the parameters of one interface.
fn table(message: &NeighbourTableMessage) -> Option<(Family, NeighbourTable)> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let limit = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourTableAttribute::Threshold3(limit) => Some(*limit),
        _ => None,
    });
    let entries = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourTableAttribute::Config(config) => Some(config.entries),
        _ => None,
    });
    Some((family, NeighbourTable { limit: limit?, entries: entries? }))
}

/// What is wrong if entries were refused: which table is full, its limit, and the command that
/// raises it. `limits` are those of the neighbour tables, as far as they are known; `wanted` is the
/// number of entries that are needed in all.
pub fn problems(
    refused: &BTreeMap<NextHop, NeighbourRefusal>,
    limits: &BTreeMap<Family, NeighbourTable>,
    wanted: impl Fn(Family) -> usize,
) -> Vec<String> {
    let mut problems = Vec::new();
    for family in Family::BOTH {
        let of_family = |address: &IpAddr| Family::of(address) == family;
        let is_full = |(next_hop, why): &(&NextHop, &NeighbourRefusal)| {
            **why == NeighbourRefusal::TableFull && of_family(&next_hop.1)
        };
        let number = refused.iter().filter(is_full).count();
        if number > 0 {
            let limit = limits.get(&family).map(|table| table.limit);
            let wanted = wanted(family);
            problems.push(format!(
                "the kernel's {} neighbour table is full: {number} of {wanted} next hops have no entry, and packets \
                to them go by TC or are lost; \
                 {} is {}; {}",
                family.name(),
                sysctl_name(family),
                limit.map_or("unknown".to_owned(), |limit| limit.to_string()),
                remedy(family, wanted, limit.unwrap_or_default()),
            ));
        }
    }
    let others = refused.iter().filter_map(|((ifindex, address), why)| match why {
        NeighbourRefusal::Other(why) => {
            Some(format!("the neighbour {address} on interface {ifindex} cannot be kept resolved: {why}"))
        }
        NeighbourRefusal::TableFull => None,
    });
    let mut others = others.peekable();
    if let Some(first) = others.next() {
        let more = others.count();
        problems.push(if more == 0 { first } else { format!("{first} (and {more} more)") });
    }
    problems
}

/// The command that raises the limit of a neighbour table, so that `needed` more entries fit.
pub fn remedy(family: Family, needed: usize, limit: u32) -> String {
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    let enough = limit.saturating_add(needed).checked_next_power_of_two().unwrap_or(u32::MAX);
    format!("sysctl -w {}={enough}", sysctl_name(family))
}

/// The sysctl that limits a neighbour table. It applies to all network namespaces, but is visible
/// only in the initial one.
pub const fn sysctl_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "net.ipv4.neigh.default.gc_thresh3",
        Family::V6 => "net.ipv6.neigh.default.gc_thresh3",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(text: &str) -> NextHop {
        (7, text.parse().unwrap())
    }

    #[test]
    fn full_table_is_told_with_its_limit_and_the_command_that_raises_it() {
        let refused = BTreeMap::from([
            (hop("10.0.0.1"), NeighbourRefusal::TableFull),
            (hop("10.0.0.2"), NeighbourRefusal::TableFull),
            (hop("fd00::1"), NeighbourRefusal::TableFull),
        ]);
        let limits = BTreeMap::from([(Family::V4, NeighbourTable { limit: 1024, entries: 1024 })]);
        let told = problems(&refused, &limits, |_| 4000);
        let [v4, v6] = told.as_slice() else { panic!("{told:?}") };
        for part in [
            "IPv4 neighbour table is full",
            "2 of 4000 next hops",
            "net.ipv4.neigh.default.gc_thresh3 is 1024",
            "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192",
        ] {
            assert!(v4.contains(part), "{part}: {v4}");
        }
        assert!(v6.contains("net.ipv6.neigh.default.gc_thresh3 is unknown"), "{v6}");
    }

    #[test]
    fn other_refusals_are_told_once_with_their_number() {
        let no_device = NeighbourRefusal::Other("No such device".to_owned());
        let refused = BTreeMap::from([(hop("10.0.0.1"), no_device.clone()), (hop("10.0.0.2"), no_device)]);
        let told = problems(&refused, &BTreeMap::new(), |_| 2);
        let [one] = told.as_slice() else { panic!("{told:?}") };
        assert!(one.contains("10.0.0.1 on interface 7") && one.contains("No such device (and 1 more)"), "{one}");
        assert_eq!(problems(&BTreeMap::new(), &BTreeMap::new(), |_| 2), Vec::<String>::new());
    }
}
