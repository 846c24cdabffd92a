//! The fingerprints of recent SYNs, `SYNS`: the program's, but for those that name a backend whose
//! index is to be used again.

use std::{collections::BTreeSet, io, path::Path, sync::atomic::Ordering};

use aya::maps::MapData;
use lb_common::{limits::map, syn::Syn};

use crate::dataplane::raw::Words;

pub struct Syns(Words);

impl Syns {
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(pin_dir.join(map::SYNS)).map_err(io::Error::other)?;
        Words::map(&data).map(Self)
    }

    /// Zeroes those that went to one of `backends`, which no longer serve: no program writes
    /// another.
    pub fn forget(&self, backends: &BTreeSet<u32>) {
        for word in self.0.as_slice() {
            let syn = word.load(Ordering::Relaxed);
            // One that was replaced just now went to a backend that serves.
            if backends.contains(&Syn(syn).owner())
                && let Err(other) = word.compare_exchange(syn, 0, Ordering::AcqRel, Ordering::Relaxed)
            {
                tracing::trace!(other, "a newer fingerprint");
            }
        }
    }
}
