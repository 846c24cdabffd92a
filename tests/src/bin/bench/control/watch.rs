//! Looks at the slots of the rings themselves, in the pinned map that the programs read.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use lb_common::{
    backend::{Backend, HEALTH_UP},
    limits::map,
};
use lb_userspace::dataplane::{image::Slots, maps::Maps, plan::address, rings::Rings};

/// How often the slots are looked at. The kernel adds some 50 µs.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// The rings, and which of their slots belong to which backend while all backends are eligible.
pub struct Watch {
    rings: Rings,
    backends: BackendEntries,
    /// By address: index in `BACKENDS`, and the places of its slots.
    owned: BTreeMap<SocketAddr, (u32, Vec<u32>)>,
}

/// The slots of one backend.
#[derive(Clone, Copy)]
pub struct Owned<'a> {
    index: u32,
    slots: &'a [u32],
}

/// What the slots are to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// None of them is the backend's.
    Left,
    /// All of them are the backend's again.
    Back,
}

impl Watch {
    /// Call it while every backend is eligible. No two of them may have the same address and port.
    pub fn new(pin_dir: &Path) -> Result<Self> {
        let maps = Maps::open(pin_dir).with_context(|| format!("can't open the maps in {}", pin_dir.display()))?;
        let image = maps.read().context("can't read the maps")?;
        let mut slots: HashMap<u32, Vec<u32>> = HashMap::new();
        let ring = |(offset, len)| (offset..).zip(maps.slots().range(offset, len));
        for (at, slot) in image.ranges().into_iter().flat_map(ring) {
            slots.entry(slot.current()).or_default().push(at);
        }
        let of_backend = |(index, slots)| Some((address(image.backends.get(&index)?)?, (index, slots)));
        let owned = slots.into_iter().filter_map(of_backend).collect();
        Ok(Self {
            rings: Rings::open(pin_dir).context("can't map the rings")?,
            backends: BackendEntries::open(pin_dir)?,
            owned,
        })
    }

    pub fn owned(&self, address: SocketAddr) -> Result<Owned<'_>> {
        let found = self.owned.get(&address).map(|(index, slots)| Owned { index: *index, slots });
        found.with_context(|| format!("{address} owned no slot"))
    }

    /// When the last of all these slots was seen as it should be; `None` if some are not within
    /// `patience`.
    pub fn wait<'a>(
        &self,
        all: impl IntoIterator<Item = Owned<'a>>,
        turn: Turn,
        patience: Duration,
    ) -> Option<Instant> {
        let deadline = Instant::now() + patience;
        for owned in all {
            for at in owned.slots {
                while !self.has_turned(owned.index, *at, turn) {
                    if Instant::now() > deadline {
                        return None;
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
        Some(Instant::now())
    }

    /// Of each of these backends: how long after the verdict its last slot was seen as it should
    /// be. Backends of which nothing is seen within `patience` are left out.
    pub fn wait_verdicts<'a>(
        &self,
        all: impl IntoIterator<Item = Owned<'a>>,
        turn: Turn,
        patience: Duration,
    ) -> Result<Vec<Duration>> {
        let deadline = Instant::now() + patience;
        let mut pending: Vec<Owned<'_>> = all.into_iter().collect();
        let mut took = Vec::new();
        while !pending.is_empty() && Instant::now() < deadline {
            let (done, left) = pending
                .into_iter()
                .partition::<Vec<_>, _>(|owned| owned.slots.iter().all(|at| self.has_turned(owned.index, *at, turn)));
            let now = SystemTime::now();
            for owned in done {
                took.push(now.duration_since(self.backends.judged_at(owned.index)?).unwrap_or_default());
            }
            pending = left;
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(took)
    }

    fn has_turned(&self, index: u32, at: u32, turn: Turn) -> bool {
        let is_owner = self.rings.slot(at).is_some_and(|slot| slot.current() == index);
        is_owner == (turn == Turn::Back)
    }
}

/// The entries of `BACKENDS`, in which the agent notes health.
pub struct BackendEntries(Array<MapData, Backend>);

impl BackendEntries {
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let data = MapData::from_pin(pin_dir.join(map::BACKENDS)).context("can't open the pinned map BACKENDS")?;
        Ok(Self(Array::try_from(Map::from_map_data(data)?).context("BACKENDS is another kind of map")?))
    }

    pub fn count_up(&self) -> Result<u32> {
        let mut up = 0;
        for entry in self.0.iter() {
            let entry = entry.context("can't read BACKENDS")?;
            up += u32::from(entry.family != 0 && entry.health == HEALTH_UP);
        }
        Ok(up)
    }

    /// When a backend's health last changed: the agent writes that before the slots.
    fn judged_at(&self, index: u32) -> Result<SystemTime> {
        let backend = self.0.get(&index, 0).context("can't read BACKENDS")?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(backend.health_since_unix_ns))
    }
}
