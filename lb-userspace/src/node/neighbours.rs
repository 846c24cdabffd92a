//! Keeps the neighbour entries of backends' next hops resolved, so that XDP can forward at once. It
//! uses managed entries, which the kernel (from 5.16 on) probes by itself. They are marked as
//! learned elsewhere: such entries are not collected as garbage, and `gc_thresh3`, the limit of the
//! kernel's neighbour table, does not count them. Our entries carry a protocol number of our own,
//! by which the next agent recognises them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::util::KernelVersion;
use futures_util::TryStreamExt;
use lb_common::flow::Family;
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
    /// The wanted next hops for which the kernel has refused a managed entry, and why.
    pub refused: BTreeMap<NextHop, NeighbourRefusal>,
}

/// Why the kernel refuses a neighbour entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NeighbourRefusal {
    /// The neighbour table of the address's family has no room (ENOBUFS).
    TableFull,
    /// Any other error, in the kernel's words.
    Other(String),
}

struct NeighbourEntry {
    message: NeighbourMessage,
    is_resolved: bool,
    /// Set by an administrator; never touched.
    is_permanent: bool,
    is_managed: bool,
    is_ours: bool,
    /// Neither collected as garbage nor counted by `gc_thresh3`.
    is_exempt: bool,
}

impl NeighbourEntry {
    /// Whether this entry can stay as it is for a wanted next hop. Our entries that are not exempt,
    /// which earlier versions of Weir made, are replaced.
    const fn is_kept(&self) -> bool {
        self.is_permanent || self.is_managed && (self.is_exempt || !self.is_ours)
    }
}

impl Netlink {
    /// Makes managed entries for those `wanted` next hops that need one, and removes our other
    /// entries. If the kernel refuses an entry, that is not an error, but part of the result.
    pub async fn keep_neighbours(&self, wanted: &BTreeSet<NextHop>) -> Result<Neighbourhood, NetlinkError> {
        let entries = self.neighbours().await?;
        let mut found = Neighbourhood { is_unmanaged: !can_manage(), ..Neighbourhood::default() };
        // Remove entries first, to make room for new ones.
        for (next_hop, entry) in &entries {
            if entry.is_ours && !wanted.contains(next_hop) {
                self.forget(*next_hop, entry.message.clone()).await?;
            }
        }
        let mut missing = BTreeSet::new();
        for next_hop in wanted {
            let entry = entries.get(next_hop);
            let is_resolved = entry.is_some_and(|entry| entry.is_resolved);
            if is_resolved { &mut found.resolved } else { &mut found.unresolved }.insert(*next_hop);
            if !entry.is_some_and(NeighbourEntry::is_kept) {
                missing.insert(*next_hop);
            }
        }
        found.refused = self.manage_all(&missing).await;
        Ok(found)
    }

    /// Makes managed entries for these next hops, whatever entries they have; returns those that
    /// the kernel refuses. Makes none if the kernel cannot manage them.
    pub async fn manage_all(&self, next_hops: &BTreeSet<NextHop>) -> BTreeMap<NextHop, NeighbourRefusal> {
        let mut refused = BTreeMap::new();
        let mut full = BTreeSet::new();
        for next_hop in next_hops.iter().filter(|_| can_manage()) {
            let family = Family::of(&next_hop.1);
            // A full table refuses the rest as well.
            if full.contains(&family) {
                refused.insert(*next_hop, NeighbourRefusal::TableFull);
                continue;
            }
            match self.manage(*next_hop).await {
                Ok(()) => {}
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOBUFS => {
                    full.insert(family);
                    refused.insert(*next_hop, NeighbourRefusal::TableFull);
                }
                Err(error) => drop(refused.insert(*next_hop, NeighbourRefusal::Other(error.to_string()))),
            }
        }
        refused
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

    /// How many entries of each family, in this network namespace, count towards `gc_thresh3`.
    pub async fn counted_neighbours(&self) -> Result<BTreeMap<Family, usize>, NetlinkError> {
        let mut counted = BTreeMap::new();
        for ((_, address), entry) in self.neighbours().await? {
            if !entry.is_exempt {
                *counted.entry(Family::of(&address)).or_default() += 1;
            }
        }
        Ok(counted)
    }

    async fn manage(&self, (ifindex, address): NextHop) -> Result<(), rtnetlink::Error> {
        let add = self.handle.neighbours().add(ifindex, address);
        let mut add = add.state(NeighbourState::None).flags(NeighbourFlags::ExtLearned).replace();
        add.message_mut()
            .attributes
            .extend([NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed), NeighbourAttribute::Protocol(PROTOCOL)]);
        tracing::debug!(ifindex, %address, "neighbour entry kept resolved");
        add.execute().await
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

    async fn neighbours(&self) -> Result<BTreeMap<NextHop, NeighbourEntry>, NetlinkError> {
        let mut entries = BTreeMap::new();
        let mut messages = self.handle.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.map_err(request("list neighbours"))? {
            if let Some(next_hop) = next_hop(&message) {
                entries.insert(next_hop, entry(message));
            }
        }
        Ok(entries)
    }
}

/// Whether this kernel supports managed entries.
pub fn can_manage() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 16, 0))
}

/// The neighbour that a message is about, if it is an IP neighbour.
pub(super) fn next_hop(message: &NeighbourMessage) -> Option<NextHop> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    Some((message.header.ifindex, address?))
}

/// The neighbour that a message is about, unless its entry can stay as it is (`Entry::is_kept`).
pub(super) fn unmanaged(message: NeighbourMessage) -> Option<NextHop> {
    let next_hop = next_hop(&message)?;
    (!entry(message).is_kept()).then_some(next_hop)
}

fn entry(message: NeighbourMessage) -> NeighbourEntry {
    let (mut has_address, mut is_managed, mut is_ours) = (false, false, false);
    for attribute in &message.attributes {
        match attribute {
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
    let is_learned = message.header.flags.contains(NeighbourFlags::ExtLearned);
    NeighbourEntry {
        is_resolved: is_valid && has_address,
        is_permanent,
        is_managed,
        is_ours: is_ours && is_managed,
        is_exempt: is_learned || state == NeighbourState::Permanent,
        message,
    }
}
