//! The decisions that the programs report: the ring buffer `TRACE` and its filter. It has its own
//! handles, because nothing else uses these maps.

use std::path::Path;

use aya::maps::{Array, MapData, RingBuf};
use lb_common::{
    limits::map,
    trace::{TraceEvent, TraceFilter},
};

use super::{
    maps::{self, MapsError},
    raw,
};

pub struct Trace {
    events: RingBuf<MapData>,
    filter: Array<MapData, TraceFilter>,
}

impl Trace {
    /// Opens the maps that [`crate::dataplane::data_path::DataPath::open`] has pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, MapsError> {
        Ok(Self { events: maps::open(pin_dir, map::TRACE)?, filter: maps::open(pin_dir, map::TRACE_FILTER)? })
    }

    /// Sets which decisions are reported. A running program may read a half-written filter, so the
    /// events are filtered again here.
    pub fn set_filter(&mut self, filter: &TraceFilter) -> Result<(), MapsError> {
        self.filter.set(0, filter, 0).map_err(|source| MapsError::Write {
            map: map::TRACE_FILTER,
            key: "the filter".to_owned(),
            source,
        })
    }

    /// The next event; `None` if there is none now. Events written by another version's program are
    /// skipped.
    pub fn take(&mut self) -> Option<TraceEvent> {
        loop {
            let record = self.events.next()?;
            if let Some(event) = raw::value(&record) {
                return Some(event);
            }
        }
    }
}
