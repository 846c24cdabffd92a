//! The NAT flow tables `NAT_*`: counting, removing entries that are over, listing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, MapData, MapError},
};
use lb_common::{
    backend::Backend,
    flow::{Addr, Family, Flow, V4Addr, V6Addr, ip_addr},
    limits::map,
    nat::{NAT_ESTABLISHED, NAT_FORWARD, NatEntry, NatTimeouts, is_closing},
};

use super::{FlowKey, FlowQuery, Table, TableFill, flow_key, socket_address};
use crate::dataplane::maps::{self, MapsError, unread};

/// The tables of both families.
pub struct NatTables {
    v4: Tables<V4Addr>,
    v6: Tables<V6Addr>,
    backends: Array<MapData, Backend>,
}

struct Tables<A> {
    family: Family,
    established: Table<A, NatEntry<A>>,
    half_open: Table<A, NatEntry<A>>,
}

/// What a pass over the tables has found and done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowCensus {
    /// Flows of each backend, by its index.
    pub flows: BTreeMap<u32, FlowCounts>,
    /// The indexes of backends that some entry still names.
    pub named: BTreeSet<u32>,
    /// The indexes in `named` with an entry that does more than wait for late packets of a closed
    /// connection.
    pub busy: BTreeSet<u32>,
    /// The same for VIPs, by the index of their counters.
    pub busy_vips: BTreeSet<u32>,
    /// Flows of each VIP, by the index of its counters.
    pub vips: BTreeMap<u32, FlowCounts>,
    /// The addresses under which backends see clients.
    pub sources: BTreeSet<IpAddr>,
    /// How full the tables are; each flow has two entries.
    pub tables: Vec<TableFill>,
    /// Entries that were removed.
    pub removed: u64,
}

/// The live flows of a backend or a VIP, by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowCounts {
    pub half_open: u64,
    pub established: u64,
    pub closing: u64,
}

impl FlowCounts {
    /// All flows; under SNAT, each holds a SNAT port.
    pub const fn all(&self) -> u64 {
        self.half_open + self.established + self.closing
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FlowState {
    HalfOpen,
    Established,
    Closing,
}

impl FlowState {
    const fn of(flags: u32) -> Self {
        if flags & NAT_ESTABLISHED == 0 {
            FlowState::HalfOpen
        } else if is_closing(flags) {
            FlowState::Closing
        } else {
            FlowState::Established
        }
    }

    /// The value of `FlowView::state`.
    pub const fn name(self) -> &'static str {
        match self {
            FlowState::HalfOpen => "half-open",
            FlowState::Established => "established",
            FlowState::Closing => "closing",
        }
    }
}

/// One flow, from its entry for the client's direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawFlow {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// The client's address as the backend sees it.
    pub source: SocketAddr,
    pub backend: SocketAddr,
    pub backend_index: u32,
    pub generation: u32,
    pub state: FlowState,
    /// Time since the last packet in either direction.
    pub idle_ns: u64,
}

/// A closed connection that has been silent for this long has no packets left that could still be
/// retransmitted.
const STRAGGLERS_NS: u64 = 5_000_000_000;

impl NatTables {
    /// Opens the maps that [`crate::dataplane::data_path::DataPath::open`] has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            v4: Tables {
                family: Family::V4,
                established: Table::open(pin_dir, map::NAT_ESTABLISHED_V4)?,
                half_open: Table::open(pin_dir, map::NAT_HALF_OPEN_V4)?,
            },
            v6: Tables {
                family: Family::V6,
                established: Table::open(pin_dir, map::NAT_ESTABLISHED_V6)?,
                half_open: Table::open(pin_dir, map::NAT_HALF_OPEN_V6)?,
            },
            backends: maps::open(pin_dir, map::BACKENDS)?,
        })
    }

    /// Counts the flows, and removes entries that are over: idle in both directions for longer than
    /// their time-out, or of a backend that no longer serves. `now_ns` is
    /// [`crate::clock::boottime_ns`].
    pub fn collect(&mut self, now_ns: u64, timeouts: &NatTimeouts) -> Result<FlowCensus, MapsError> {
        let mut census = FlowCensus::default();
        self.v4.collect(&self.backends, now_ns, timeouts, &mut census)?;
        self.v6.collect(&self.backends, now_ns, timeouts, &mut census)?;
        Ok(census)
    }

    /// The flow of a client's packet to a VIP, if it has an entry of its own.
    pub fn lookup(&self, client: SocketAddr, vip: SocketAddr, now_ns: u64) -> Result<Option<RawFlow>, MapsError> {
        match flow_key(client, vip) {
            Some(FlowKey::V4(flow)) => self.v4.lookup(&flow, now_ns),
            Some(FlowKey::V6(flow)) => self.v6.lookup(&flow, now_ns),
            None => Ok(None),
        }
    }

    /// The flows that match `query`, up to its limit, sorted by client; and the total number of
    /// matches.
    pub fn list(&self, query: &FlowQuery, now_ns: u64) -> Result<(Vec<RawFlow>, usize), MapsError> {
        let mut flows = Vec::new();
        let mut all = self.v4.list(query, now_ns, &mut flows)?;
        all += self.v6.list(query, now_ns, &mut flows)?;
        flows.sort_unstable_by_key(|flow| (flow.client, flow.vip));
        Ok((flows, all))
    }
}

impl<A: Addr> Tables<A>
where
    Flow<A>: Pod,
    NatEntry<A>: Pod,
{
    fn collect(
        &mut self,
        backends: &Array<MapData, Backend>,
        now_ns: u64,
        timeouts: &NatTimeouts,
        census: &mut FlowCensus,
    ) -> Result<(), MapsError> {
        let mut suspects = Vec::new();
        let mut fills = Vec::new();
        let mut serving: BTreeMap<(u32, u32), bool> = BTreeMap::new();
        // Flows move from half-open to established; scanning in this order misses no flow that
        // moves during the scan. Flows that move back are over.
        for table in [&self.half_open, &self.established] {
            let mut entries = 0;
            let mut failure = Ok(());
            table.scan(|flow, entry| {
                entries += 1;
                let serves = *serving.entry((entry.backend, entry.generation)).or_insert_with(|| {
                    serves(backends, entry.backend, entry.generation).unwrap_or_else(|error| {
                        failure = Err(error);
                        true
                    })
                });
                if serves && !is_idle(&entry, now_ns, timeouts) {
                    census.count(self.family, &entry, now_ns);
                } else {
                    suspects.push(*flow);
                }
            })?;
            failure?;
            fills.push(table.fill(entries));
        }
        for flow in suspects {
            self.judge(&flow, backends, now_ns, timeouts, census, &mut fills)?;
        }
        census.tables.append(&mut fills);
        Ok(())
    }

    /// Looks at an entry again, together with its reverse entry, and removes both if the flow is
    /// over. The program treats an entry that is over as absent and does not revive it. A new flow
    /// of the same tuple could still appear between this check and the removal, a window of
    /// microseconds.
    fn judge(
        &mut self,
        flow: &Flow<A>,
        backends: &Array<MapData, Backend>,
        now_ns: u64,
        timeouts: &NatTimeouts,
        census: &mut FlowCensus,
        fills: &mut [TableFill],
    ) -> Result<(), MapsError> {
        let Some(entry) = self.find(flow)? else { return Ok(()) };
        let peer = entry.peer();
        let other_way = self.find(&peer)?.filter(|other| other.peer() == *flow);
        let is_quiet = |entry: &NatEntry<A>| is_idle(entry, now_ns, timeouts);
        let is_awake = !is_quiet(&entry) || other_way.as_ref().is_some_and(|other| !is_quiet(other));
        if is_awake && serves(backends, entry.backend, entry.generation)? {
            census.count(self.family, &entry, now_ns);
            return Ok(());
        }
        let over = [Some(*flow), other_way.map(|_| peer)];
        for flow in over.iter().flatten() {
            for (table, fill) in [&mut self.half_open, &mut self.established].into_iter().zip(fills.iter_mut()) {
                if table.remove(flow)? {
                    census.removed += 1;
                    fill.entries = fill.entries.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    fn list(&self, query: &FlowQuery, now_ns: u64, flows: &mut Vec<RawFlow>) -> Result<usize, MapsError> {
        let mut found = Vec::new();
        let mut all = 0;
        for table in [&self.established, &self.half_open] {
            table.scan(|flow, entry| {
                if entry.flags & NAT_FORWARD == 0 || !query.fits(self.family, flow, entry.backend) {
                    return;
                }
                all += 1;
                if flows.len() + found.len() < query.limit {
                    found.push((*flow, entry));
                }
            })?;
        }
        for (flow, entry) in found {
            flows.push(self.raw(&flow, &entry, now_ns)?);
        }
        Ok(all)
    }

    fn lookup(&self, flow: &Flow<A>, now_ns: u64) -> Result<Option<RawFlow>, MapsError> {
        match self.find(flow)? {
            Some(entry) => self.raw(flow, &entry, now_ns).map(Some),
            None => Ok(None),
        }
    }

    fn raw(&self, flow: &Flow<A>, entry: &NatEntry<A>, now_ns: u64) -> Result<RawFlow, MapsError> {
        let answered = self.find(&entry.peer())?.map_or(0, |other| other.last_seen_ns);
        let last_seen_ns = answered.max(entry.last_seen_ns);
        Ok(RawFlow {
            client: socket_address(self.family, flow.src, flow.src_port_be),
            vip: socket_address(self.family, flow.dst, flow.dst_port_be),
            source: socket_address(self.family, entry.to.src, entry.to.src_port_be),
            backend: socket_address(self.family, entry.to.dst, entry.to.dst_port_be),
            backend_index: entry.backend,
            generation: entry.generation,
            state: FlowState::of(entry.flags),
            idle_ns: now_ns.saturating_sub(last_seen_ns),
        })
    }

    fn find(&self, flow: &Flow<A>) -> Result<Option<NatEntry<A>>, MapsError> {
        match self.established.find(flow)? {
            Some(entry) => Ok(Some(entry)),
            None => self.half_open.find(flow),
        }
    }
}

impl FlowCensus {
    fn count<A: Addr>(&mut self, family: Family, entry: &NatEntry<A>, now_ns: u64) {
        self.named.insert(entry.backend);
        if !is_closing(entry.flags) || now_ns.saturating_sub(entry.last_seen_ns) < STRAGGLERS_NS {
            self.busy.insert(entry.backend);
            self.busy_vips.insert(entry.stats);
        }
        if entry.flags & NAT_FORWARD == 0 {
            return;
        }
        self.sources.insert(ip_addr(family, entry.to.src.to_any()));
        let state = FlowState::of(entry.flags);
        for counts in [self.flows.entry(entry.backend).or_default(), self.vips.entry(entry.stats).or_default()] {
            match state {
                FlowState::HalfOpen => counts.half_open += 1,
                FlowState::Established => counts.established += 1,
                FlowState::Closing => counts.closing += 1,
            }
        }
    }
}

fn is_idle<A>(entry: &NatEntry<A>, now_ns: u64, timeouts: &NatTimeouts) -> bool {
    now_ns.saturating_sub(entry.last_seen_ns) > timeouts.of(entry.flags)
}

/// Reads the map each time, because the owner of the maps may have just added the backend.
fn serves(backends: &Array<MapData, Backend>, index: u32, generation: u32) -> Result<bool, MapsError> {
    match backends.get(&index, 0) {
        Ok(backend) => Ok(backend.is_serving() && backend.generation == generation),
        Err(MapError::OutOfBounds { .. }) => Ok(false),
        Err(error) => Err(unread(map::BACKENDS)(error)),
    }
}
