//! How the backends are reached: the routes to their addresses, and the neighbour entries that the
//! kernel keeps for the next hops. Routes and neighbour entries are updated separately, as the
//! kernel announces changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::flow::Family;
use tracing::warn;

use super::{
    interfaces::{Netlink, NetlinkError},
    neighbour_tables,
    neighbours::{NeighbourRefusal, NextHop},
    routes::Route,
};

/// The routes and the next hops of a set of addresses.
pub struct Reach {
    netlink: Netlink,
    /// The addresses whose routes were looked up, with or without success.
    known: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, Route>,
    /// The next hops whose entries were kept at the last pass over all neighbours.
    kept: BTreeSet<NextHop>,
    refused: BTreeMap<NextHop, NeighbourRefusal>,
}

impl Reach {
    pub const fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            known: BTreeSet::new(),
            routes: BTreeMap::new(),
            kept: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The routes by address; addresses without a route are missing.
    pub const fn routes(&self) -> &BTreeMap<IpAddr, Route> {
        &self.routes
    }

    /// Looks up the routes to all these addresses. After an error, the routes found before stay.
    pub async fn look_up(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
        let routes = self.netlink.routes_to(addresses).await?;
        let had_route = |address: &IpAddr| !self.known.contains(address) || self.routes.contains_key(address);
        warn_of_missing(addresses.iter().filter(|address| !routes.contains_key(*address) && had_route(address)));
        self.routes = routes;
        self.known.clone_from(addresses);
        Ok(())
    }

    /// Looks up the routes to those of these addresses that are new, and forgets addresses that are
    /// not among them. Returns the number of look-ups.
    pub async fn look_up_new(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, NetlinkError> {
        let new: BTreeSet<IpAddr> = addresses.difference(&self.known).copied().collect();
        let routes = self.netlink.routes_to(&new).await?;
        warn_of_missing(new.iter().filter(|address| !routes.contains_key(*address)));
        self.routes.retain(|address, _| addresses.contains(address));
        self.routes.extend(routes);
        self.known.clone_from(addresses);
        Ok(new.len())
    }

    /// Whether the next hops of the routes differ from those whose neighbour entries are kept.
    pub fn has_other_next_hops(&self) -> bool {
        next_hops(&self.routes) != self.kept
    }

    /// Examines all neighbour entries: makes those that are missing, and removes those of ours that
    /// are no longer wanted.
    pub async fn keep_neighbours(&mut self) -> Result<(), NetlinkError> {
        let wanted = next_hops(&self.routes);
        self.refused = self.netlink.keep_neighbours(&wanted).await?.refused;
        self.kept = wanted;
        Ok(())
    }

    /// Whether the entry of this neighbour is kept.
    pub fn keeps(&self, neighbour: &NextHop) -> bool {
        self.kept.contains(neighbour)
    }

    /// Makes the entries of these kept neighbours again, after they were lost.
    pub async fn restore_neighbours(&mut self, lost: &BTreeSet<NextHop>) {
        self.refused.retain(|next_hop, _| !lost.contains(next_hop));
        self.refused.extend(self.netlink.manage_all(lost).await);
    }

    pub fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }

    /// What is wrong with the neighbour entries, and the remedy, one sentence each.
    pub async fn problems(&self) -> Result<Vec<String>, NetlinkError> {
        if self.refused.is_empty() {
            return Ok(Vec::new());
        }
        let limits = self.netlink.neighbour_tables().await?;
        let wanted = |family| self.kept.iter().filter(|(_, address)| Family::of(address) == family).count();
        Ok(neighbour_tables::problems(&self.refused, &limits, wanted))
    }
}

/// The next hops of these routes. Addresses behind one gateway have one next hop.
pub fn next_hops(routes: &BTreeMap<IpAddr, Route>) -> BTreeSet<NextHop> {
    let remote = routes.iter().filter(|(_, route)| !route.is_local);
    remote.map(|(address, route)| (route.ifindex, route.next_hop(*address))).collect()
}

/// Maximum number of addresses without a route that are logged one by one.
const NAMED: usize = 8;

fn warn_of_missing<'a>(addresses: impl Iterator<Item = &'a IpAddr>) {
    let mut addresses = addresses.peekable();
    for address in addresses.by_ref().take(NAMED) {
        warn!(backend = %address, "there is no route to this backend");
    }
    let more = addresses.count();
    if more > 0 {
        warn!(more, "there is no route to more backends");
    }
}
