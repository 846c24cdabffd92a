//! The fingerprints of recent SYNs in the map `SYNS`. The program writes them; the agent only
//! erases those that name a backend whose index is about to be reused.

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

    /// Zeroes the fingerprints that name one of `backends`. These backends no longer serve, so no
    /// program writes new fingerprints for them.
    pub fn forget(&self, backends: &BTreeSet<u32>) {
        for word in self.0.as_slice() {
            let syn = word.load(Ordering::Relaxed);
            // A fingerprint replaced since the load names a backend that serves, so a failed
            // exchange is fine.
            if backends.contains(&Syn(syn).owner())
                && let Err(other) = word.compare_exchange(syn, 0, Ordering::AcqRel, Ordering::Relaxed)
            {
                tracing::trace!(other, "a newer fingerprint");
            }
        }
    }
}
