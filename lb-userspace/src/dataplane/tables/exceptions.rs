//! Reads the exceptions of DSR services and the fingerprints of SYNs, for user queries.

use std::{net::SocketAddr, path::Path};

use aya::{
    Pod,
    maps::{Array, MapData},
};
use lb_common::{
    exception::Exception,
    flow::{Addr, Family, Flow, V4Addr, V6Addr},
    limits::map,
    syn::Syn,
};

use super::{
    FlowKey, FlowQuery,
    dsr::{DsrTables, ExceptionKind},
    flow_key, socket_address,
};
use crate::dataplane::maps::{self, MapsError, unread};

pub struct Exceptions {
    v4: DsrTables<V4Addr>,
    v6: DsrTables<V6Addr>,
    syns: Array<MapData, u64>,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawException {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub kind: ExceptionKind,
    pub entry: Exception,
}

/// The entries that the tables hold for one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowExceptions {
    pub established: Option<Exception>,
    pub half_open: Option<Exception>,
    pub seen: Option<Exception>,
}

impl FlowExceptions {
    pub fn entries(&self) -> impl Iterator<Item = (ExceptionKind, Exception)> {
        let of = |kind| move |entry| (kind, entry);
        let established = self.established.map(of(ExceptionKind::Established));
        let half_open = self.half_open.map(of(ExceptionKind::HalfOpen));
        established.into_iter().chain(half_open).chain(self.seen.map(of(ExceptionKind::Seen)))
    }
}

impl Exceptions {
    /// Opens the maps that [`crate::dataplane::data_path::DataPath::open`] has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            v4: DsrTables::open(pin_dir, Family::V4)?,
            v6: DsrTables::open(pin_dir, Family::V6)?,
            syns: maps::open(pin_dir, map::SYNS)?,
        })
    }

    /// The entries that match `query`, up to its limit. SEEN entries are included only `with_seen`,
    /// because they name the same backend as the ring does.
    pub fn list(&self, query: &FlowQuery, with_seen: bool) -> Result<Vec<RawException>, MapsError> {
        let mut found = Vec::new();
        list(&self.v4, query, with_seen, &mut found)?;
        list(&self.v6, query, with_seen, &mut found)?;
        Ok(found)
    }

    /// The entries for the flow of a client's packets to a VIP.
    pub fn lookup(&self, client: SocketAddr, vip: SocketAddr) -> Result<FlowExceptions, MapsError> {
        match flow_key(client, vip) {
            Some(FlowKey::V4(flow)) => lookup(&self.v4, &flow),
            Some(FlowKey::V6(flow)) => lookup(&self.v6, &flow),
            None => Ok(FlowExceptions::default()),
        }
    }

    /// The fingerprint at `place` ([`Syn::place`]).
    pub fn syn(&self, place: u32) -> Result<Syn, MapsError> {
        self.syns.get(&place, 0).map(Syn).map_err(unread(map::SYNS))
    }
}

fn list<A: Addr>(
    tables: &DsrTables<A>,
    query: &FlowQuery,
    with_seen: bool,
    found: &mut Vec<RawException>,
) -> Result<(), MapsError>
where
    Flow<A>: Pod,
{
    let kinds = [ExceptionKind::Established, ExceptionKind::HalfOpen, ExceptionKind::Seen];
    for kind in kinds.into_iter().filter(|kind| with_seen || *kind != ExceptionKind::Seen) {
        tables.of(kind).scan(|flow, entry| {
            if found.len() < query.limit && query.fits(tables.family, flow, entry.backend) {
                let client = socket_address(tables.family, flow.src, flow.src_port_be);
                let vip = socket_address(tables.family, flow.dst, flow.dst_port_be);
                found.push(RawException { client, vip, kind, entry });
            }
        })?;
    }
    Ok(())
}

fn lookup<A>(tables: &DsrTables<A>, flow: &Flow<A>) -> Result<FlowExceptions, MapsError>
where
    Flow<A>: Pod,
{
    Ok(FlowExceptions {
        established: tables.established.find(flow)?,
        half_open: tables.half_open.find(flow)?,
        seen: tables.seen.find(flow)?,
    })
}
