//! Checks that the kernel's neighbour tables have room for the next hops of the backends.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::flow::Family;

use super::finding::{error, ok, warning};
use crate::{
    node::{
        interfaces::{Netlink, NetlinkError},
        neighbour_tables::{NeighbourTable, remedy, sysctl_name},
        neighbours::{self, NextHop},
    },
    view::types::Finding,
};

pub(super) async fn findings(next_hops: &BTreeSet<NextHop>, netlink: &Netlink) -> Result<Vec<Finding>, NetlinkError> {
    let tables = netlink.neighbour_tables().await?;
    let counted = netlink.counted_neighbours().await?;
    Ok(judge(next_hops, &tables, &counted, neighbours::can_manage()))
}

/// `counted` is the number of entries in this network namespace that count towards the limit. Next
/// hops count only if `can_manage` is false: entries that Weir keeps are exempt from the limit.
fn judge(
    next_hops: &BTreeSet<NextHop>,
    tables: &BTreeMap<Family, NeighbourTable>,
    counted: &BTreeMap<Family, usize>,
    can_manage: bool,
) -> Vec<Finding> {
    let one = |family: Family| {
        let wanted = next_hops.iter().filter(|(_, address)| Family::of(address) == family).count();
        let limit = tables.get(&family).filter(|_| wanted > 0)?.limit;
        let room = usize::try_from(limit).unwrap_or(usize::MAX);
        let counted = counted.get(&family).copied().unwrap_or_default();
        let needed = if can_manage { counted } else { counted.max(wanted) };
        let (title, sysctl) = (family.name(), sysctl_name(family));
        let check = format!("neighbours {title}");
        let remedy = remedy(family, needed, limit);
        let message = if can_manage {
            format!(
                "the backends have {wanted} {title} next hops, whose entries the limit does not count; \
                 {counted} other neighbours of {limit} ({sysctl})"
            )
        } else {
            format!(
                "the backends have {wanted} {title} next hops, and {counted} neighbours of {limit} exist ({sysctl})"
            )
        };
        Some(if needed >= room {
            error(check, format!("the neighbour table is full: {message}"), remedy)
        } else if needed >= room - room / 10 {
            warning(check, format!("the neighbour table is nearly full: {message}"), remedy)
        } else {
            ok(check, message)
        })
    };
    Family::BOTH.into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::view::types::Severity;

    fn judged(next_hops: u32, counted: usize, can_manage: bool) -> Finding {
        let next_hops = (1..=next_hops).map(|number| (1, Ipv4Addr::from_bits(number).into())).collect();
        let tables = BTreeMap::from([
            (Family::V4, NeighbourTable { limit: 1024, entries: 5000 }),
            (Family::V6, NeighbourTable { limit: 1024, entries: 5000 }),
        ]);
        let findings = judge(&next_hops, &tables, &BTreeMap::from([(Family::V4, counted)]), can_manage);
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        finding.clone()
    }

    #[test]
    fn table_is_judged_by_what_counts_towards_its_limit() {
        for (next_hops, counted, can_manage, severity) in [
            (1, 1, true, Severity::Ok),
            (4000, 20, true, Severity::Ok),
            (1, 921, true, Severity::Ok),
            (1, 922, true, Severity::Warning),
            (1, 1024, true, Severity::Error),
            (4000, 20, false, Severity::Error),
            (1000, 20, false, Severity::Warning),
            (20, 20, false, Severity::Ok),
        ] {
            let found = judged(next_hops, counted, can_manage);
            assert_eq!(found.severity, severity, "{next_hops} {counted} {can_manage}");
            assert!(found.message.contains("net.ipv4.neigh.default.gc_thresh3"), "{}", found.message);
        }
        assert_eq!(judged(4000, 20, false).remedy, "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192");
    }
}
