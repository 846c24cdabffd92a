//! Reads the exceptions of DSR services (`ESTABLISHED_*`, `HALF_OPEN_*`, `SEEN_*`) and the fingerprints of SYNs, for people who ask. Handles of its own.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use lb_common::{
    exception::{EXCEPTION_CLOSING, EXCEPTION_KEPT, EXCEPTION_OPENED, Exception},
    flow::{Addr, Family, Flow, V4Addr, V6Addr, ip_addr, v4_addr, v6_addr},
    limits::map,
    syn::Syn,
};

use super::{
    flows::FlowQuery,
    maps::{self, MapsError, scan_hash, unread},
};

pub struct Exceptions {
    v4: Tables<V4Addr>,
    v6: Tables<V6Addr>,
    syns: Array<MapData, u64>,
}

struct Tables<A> {
    family: Family,
    established: Table<A>,
    half_open: Table<A>,
    seen: Table<A>,
}

struct Table<A> {
    entries: HashMap<MapData, Flow<A>, Exception>,
    kind: ExceptionKind,
    map: &'static str,
}

/// In which table an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ExceptionKind {
    Established,
    HalfOpen,
    Seen,
}

impl ExceptionKind {
    /// As `FlowView::state` has it.
    pub const fn state(self, flags: u32) -> &'static str {
        match self {
            ExceptionKind::HalfOpen => "half-open",
            _ if flags & EXCEPTION_CLOSING != 0 => "closing",
            ExceptionKind::Established | ExceptionKind::Seen => "established",
        }
    }

    /// Why there is such an entry: `FlowView::why`.
    pub const fn why(self, flags: u32) -> &'static str {
        match self {
            ExceptionKind::Seen => "seen in transition",
            _ if flags & EXCEPTION_KEPT != 0 => "kept when its slot settled",
            _ if flags & EXCEPTION_OPENED != 0 => "opened in transition",
            _ => "unknown",
        }
    }
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawException {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub kind: ExceptionKind,
    pub entry: Exception,
}

/// What the tables hold of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    pub established: Option<Exception>,
    pub half_open: Option<Exception>,
    pub seen: Option<Exception>,
}

impl Found {
    pub fn entries(&self) -> impl Iterator<Item = (ExceptionKind, Exception)> {
        let of = |kind| move |entry| (kind, entry);
        let established = self.established.map(of(ExceptionKind::Established));
        let half_open = self.half_open.map(of(ExceptionKind::HalfOpen));
        established.into_iter().chain(half_open).chain(self.seen.map(of(ExceptionKind::Seen)))
    }
}

impl Exceptions {
    /// Opens what [`super::load::DataPath::open`] has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            v4: Tables {
                family: Family::V4,
                established: Table::open(pin_dir, ExceptionKind::Established, map::ESTABLISHED_V4)?,
                half_open: Table::open(pin_dir, ExceptionKind::HalfOpen, map::HALF_OPEN_V4)?,
                seen: Table::open(pin_dir, ExceptionKind::Seen, map::SEEN_V4)?,
            },
            v6: Tables {
                family: Family::V6,
                established: Table::open(pin_dir, ExceptionKind::Established, map::ESTABLISHED_V6)?,
                half_open: Table::open(pin_dir, ExceptionKind::HalfOpen, map::HALF_OPEN_V6)?,
                seen: Table::open(pin_dir, ExceptionKind::Seen, map::SEEN_V6)?,
            },
            syns: maps::open(pin_dir, map::SYNS)?,
        })
    }

    /// The entries that `query` means, at most as many as it says; those of SEEN only `with_seen`: they say what the ring says as well.
    pub fn list(&self, query: &FlowQuery, with_seen: bool) -> Result<Vec<RawException>, MapsError> {
        let mut found = Vec::new();
        self.v4.list(query, with_seen, &mut found)?;
        self.v6.list(query, with_seen, &mut found)?;
        Ok(found)
    }

    /// What there is of the flow of a client's packets to a VIP.
    pub fn lookup(&self, client: SocketAddr, vip: SocketAddr) -> Result<Found, MapsError> {
        let (src_port_be, dst_port_be) = (client.port().to_be(), vip.port().to_be());
        match (client.ip(), vip.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.v4.lookup(&Flow { src: v4_addr(src), dst: v4_addr(dst), src_port_be, dst_port_be })
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.v6.lookup(&Flow { src: v6_addr(src), dst: v6_addr(dst), src_port_be, dst_port_be })
            }
            _ => Ok(Found::default()),
        }
    }

    /// The fingerprint at `place` ([`Syn::place`]).
    pub fn syn(&self, place: u32) -> Result<Syn, MapsError> {
        self.syns.get(&place, 0).map(Syn).map_err(unread(map::SYNS))
    }
}

impl<A: Addr> Tables<A>
where
    Flow<A>: Pod,
{
    fn list(&self, query: &FlowQuery, with_seen: bool, found: &mut Vec<RawException>) -> Result<(), MapsError> {
        let tables = [Some(&self.established), Some(&self.half_open), Some(&self.seen).filter(|_| with_seen)];
        for table in tables.into_iter().flatten() {
            scan_hash(&table.entries, table.map, |flow, entry: Exception| {
                if found.len() < query.limit && query.fits(self.family, flow, entry.backend) {
                    let end = |address: A, port_be| {
                        SocketAddr::new(ip_addr(self.family, address.to_any()), u16::from_be(port_be))
                    };
                    let (client, vip) = (end(flow.src, flow.src_port_be), end(flow.dst, flow.dst_port_be));
                    found.push(RawException { client, vip, kind: table.kind, entry });
                }
            })?;
        }
        Ok(())
    }

    fn lookup(&self, flow: &Flow<A>) -> Result<Found, MapsError> {
        Ok(Found {
            established: self.established.find(flow)?,
            half_open: self.half_open.find(flow)?,
            seen: self.seen.find(flow)?,
        })
    }
}

impl<A: Addr> Table<A>
where
    Flow<A>: Pod,
{
    fn open(pin_dir: &Path, kind: ExceptionKind, map: &'static str) -> Result<Self, MapsError> {
        Ok(Self { entries: maps::open(pin_dir, map)?, kind, map })
    }

    fn find(&self, flow: &Flow<A>) -> Result<Option<Exception>, MapsError> {
        match self.entries.get(flow, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(unread(self.map)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_entry_says_why_it_is_there() {
        let (established, half_open) = (ExceptionKind::Established, ExceptionKind::HalfOpen);
        assert_eq!(half_open.why(EXCEPTION_OPENED), "opened in transition");
        assert_eq!(half_open.state(EXCEPTION_OPENED), "half-open");
        assert_eq!(established.why(EXCEPTION_OPENED | EXCEPTION_CLOSING), "opened in transition");
        assert_eq!(established.state(EXCEPTION_OPENED | EXCEPTION_CLOSING), "closing");
        assert_eq!(established.why(EXCEPTION_KEPT), "kept when its slot settled");
        assert_eq!(ExceptionKind::Seen.why(0), "seen in transition");
    }
}
