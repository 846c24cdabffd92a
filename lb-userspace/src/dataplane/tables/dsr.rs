//! The exception tables of DSR services, for one family: ESTABLISHED, HALF_OPEN, SEEN.

use std::path::Path;

use aya::Pod;
use lb_common::{
    exception::{EXCEPTION_CLOSING, EXCEPTION_KEPT, EXCEPTION_OPENED, Exception},
    flow::{Family, Flow},
    limits::map,
    slot::Slot,
};

use super::Table;
use crate::dataplane::maps::MapsError;

/// Which table an exception is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ExceptionKind {
    /// Written for a SYN, not yet confirmed.
    HalfOpen,
    Established,
    /// Written for a flow seen going to the slot's previous owner.
    Seen,
}

impl ExceptionKind {
    pub const ALL: [ExceptionKind; 3] = [ExceptionKind::HalfOpen, ExceptionKind::Established, ExceptionKind::Seen];

    /// The flag of a slot that has entries in this table.
    pub const fn flag(self) -> u64 {
        match self {
            ExceptionKind::HalfOpen => Slot::IN_HALF_OPEN,
            ExceptionKind::Established => Slot::IN_ESTABLISHED,
            ExceptionKind::Seen => Slot::IN_SEEN,
        }
    }

    /// The name in metrics and in the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            ExceptionKind::HalfOpen => "half-open",
            ExceptionKind::Established => "established",
            ExceptionKind::Seen => "seen",
        }
    }

    /// The value of `FlowView::state`.
    pub const fn state(self, flags: u32) -> &'static str {
        match self {
            ExceptionKind::HalfOpen => "half-open",
            _ if flags & EXCEPTION_CLOSING != 0 => "closing",
            ExceptionKind::Established | ExceptionKind::Seen => "established",
        }
    }

    /// Why the entry exists: the value of `FlowView::why`.
    pub const fn why(self, flags: u32) -> &'static str {
        match self {
            ExceptionKind::Seen => "seen in transition",
            _ if flags & EXCEPTION_KEPT != 0 => "kept when its slot settled",
            _ if flags & EXCEPTION_OPENED != 0 => "opened in transition",
            _ => "unknown",
        }
    }
}

pub struct DsrTables<A> {
    pub family: Family,
    pub half_open: Table<A, Exception>,
    pub established: Table<A, Exception>,
    pub seen: Table<A, Exception>,
}

impl<A> DsrTables<A>
where
    Flow<A>: Pod,
{
    /// Opens the pinned maps of `family`, whose address type is `A`.
    pub fn open(pin_dir: &Path, family: Family) -> Result<Self, MapsError> {
        let [half_open, established, seen] = match family {
            Family::V4 => [map::HALF_OPEN_V4, map::ESTABLISHED_V4, map::SEEN_V4],
            Family::V6 => [map::HALF_OPEN_V6, map::ESTABLISHED_V6, map::SEEN_V6],
        };
        Ok(Self {
            family,
            half_open: Table::open(pin_dir, half_open)?,
            established: Table::open(pin_dir, established)?,
            seen: Table::open(pin_dir, seen)?,
        })
    }

    pub fn of(&self, kind: ExceptionKind) -> &Table<A, Exception> {
        match kind {
            ExceptionKind::HalfOpen => &self.half_open,
            ExceptionKind::Established => &self.established,
            ExceptionKind::Seen => &self.seen,
        }
    }

    pub fn of_mut(&mut self, kind: ExceptionKind) -> &mut Table<A, Exception> {
        match kind {
            ExceptionKind::HalfOpen => &mut self.half_open,
            ExceptionKind::Established => &mut self.established,
            ExceptionKind::Seen => &mut self.seen,
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
