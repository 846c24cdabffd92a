//! Keeps the neighbour entries of backends' next hops resolved, so that XDP can forward at once. It
//! uses managed entries, which the kernel (from 5.16 on) probes by itself. Our entries carry a
//! protocol number of our own, by which the next agent recognises them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::util::KernelVersion;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::{
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::RouteProtocol,
};

use super::interfaces::{Netlink, NetlinkError, request};

/// An interface index, and an address on the link of that interface.
pub type NextHop = (u32, IpAddr);

/// `proto 87` in `ip -d neigh`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'W');

/// What a pass has found and done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Neighbourhood {
    /// The wanted next hops that have a link-layer address now.
    pub resolved: BTreeSet<NextHop>,
    /// The wanted next hops that do not answer, or have no entry yet.
    pub unresolved: BTreeSet<NextHop>,
    /// The kernel cannot manage entries; packets to an unresolved next hop go by TC.
    pub is_unmanaged: bool,
}

struct Entry {
    message: NeighbourMessage,
    is_resolved: bool,
    /// Set by an administrator; never touched.
    is_permanent: bool,
    is_managed: bool,
    is_ours: bool,
}

impl Netlink {
    /// Makes managed entries for the `wanted` next hops that have none, and removes our other
    /// entries.
    pub async fn keep_neighbours(&self, wanted: &BTreeSet<NextHop>) -> Result<Neighbourhood, NetlinkError> {
        let can_manage = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 16, 0));
        let entries = self.neighbours().await?;
        let mut found = Neighbourhood { is_unmanaged: !can_manage, ..Neighbourhood::default() };
        for next_hop in wanted {
            let entry = entries.get(next_hop);
            let is_resolved = entry.is_some_and(|entry| entry.is_resolved);
            if is_resolved { &mut found.resolved } else { &mut found.unresolved }.insert(*next_hop);
            if can_manage && !entry.is_some_and(|entry| entry.is_permanent || entry.is_managed) {
                self.manage(*next_hop).await?;
            }
        }
        for (next_hop, entry) in entries {
            if entry.is_ours && !wanted.contains(&next_hop) {
                self.forget(next_hop, entry.message).await?;
            }
        }
        Ok(found)
    }

    /// Removes all our entries, for `weir cleanup`; returns them.
    pub async fn forget_neighbours(&self) -> Result<BTreeSet<NextHop>, NetlinkError> {
        let mut forgotten = BTreeSet::new();
        for (next_hop, entry) in self.neighbours().await? {
            if entry.is_ours {
                self.forget(next_hop, entry.message).await?;
                forgotten.insert(next_hop);
            }
        }
        Ok(forgotten)
    }

    /// The next hops in `wanted` that have no link-layer address now. Changes nothing.
    pub async fn unresolved(&self, wanted: &BTreeSet<NextHop>) -> Result<BTreeSet<NextHop>, NetlinkError> {
        let entries = self.neighbours().await?;
        let is_resolved = |next_hop: &&NextHop| entries.get(next_hop).is_some_and(|entry| entry.is_resolved);
        Ok(wanted.iter().filter(|next_hop| !is_resolved(next_hop)).copied().collect())
    }

    async fn manage(&self, (ifindex, address): NextHop) -> Result<(), NetlinkError> {
        let mut add = self.handle.neighbours().add(ifindex, address).state(NeighbourState::None).replace();
        add.message_mut()
            .attributes
            .extend([NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed), NeighbourAttribute::Protocol(PROTOCOL)]);
        tracing::debug!(ifindex, %address, "neighbour entry kept resolved");
        add.execute().await.map_err(request(format!("keep the neighbour {address} resolved")))
    }

    async fn forget(&self, (ifindex, address): NextHop, message: NeighbourMessage) -> Result<(), NetlinkError> {
        let mut gone = NeighbourMessage::default();
        gone.header = message.header;
        gone.header.flags = NeighbourFlags::empty();
        gone.attributes = message
            .attributes
            .into_iter()
            .filter(|attribute| matches!(attribute, NeighbourAttribute::Destination(_)))
            .collect();
        tracing::debug!(ifindex, %address, "neighbour entry no longer kept");
        match self.handle.neighbours().del(gone).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => Ok(()),
            result => result.map_err(request(format!("remove the neighbour {address}"))),
        }
    }

    async fn neighbours(&self) -> Result<BTreeMap<NextHop, Entry>, NetlinkError> {
        let mut entries = BTreeMap::new();
        let mut messages = self.handle.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.map_err(request("list neighbours"))? {
            if let Some((address, entry)) = entry(message) {
                entries.insert((entry.message.header.ifindex, address), entry);
            }
        }
        Ok(entries)
    }
}

fn entry(message: NeighbourMessage) -> Option<(IpAddr, Entry)> {
    let mut address = None;
    let (mut has_address, mut is_managed, mut is_ours) = (false, false, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(_) => has_address = true,
            NeighbourAttribute::ExtFlags(flags) => is_managed = flags.contains(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(protocol) => is_ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    let state = message.header.state;
    let is_permanent = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
    let is_valid = is_permanent
        || matches!(
            state,
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
        );
    let is_ours = is_ours && is_managed;
    Some((address?, Entry { message, is_resolved: is_valid && has_address, is_permanent, is_managed, is_ours }))
}
