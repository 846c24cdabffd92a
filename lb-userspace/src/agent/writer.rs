//! Brings the maps to the wanted state, and remembers what they hold.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    clock::{boottime_ns, unix_now},
    dataplane::{
        image::{Image, Write},
        maps::{Maps, MapsError},
        plan::{FlowUse, Memo, Plan, PlanError, Wanted, WantedService, plan_again, plan_part},
        programmed::Programmed,
    },
    metrics::{MapUpdateErrors, SyncDurations},
    state::{BackendId, ServiceName},
    view::types::SyncStatus,
};

/// Which part of the wanted state may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlanScope {
    /// Only these services, by name.
    Services(BTreeSet<ServiceName>),
    All(Read),
}

/// Where the current contents of the maps are taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// The contents that were written last, so that a change need not wait until all maps are read.
    /// Slots are read from their map in any case.
    Cached,
    /// The maps themselves.
    Maps,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Maps(#[from] MapsError),
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The minimum number of slots that one audit compares; each audit continues where the last one
/// ended.
const AUDITED_SLOTS: usize = 1 << 17;
/// The number of audits in which every slot is compared, however many slots there are.
const AUDITS_PER_ROUND: usize = 60;

/// The maps, and what was written to them.
pub struct Writer {
    maps: Maps,
    memo: Memo,
    programmed: Programmed,
    /// Whether `programmed` is what the maps hold; if not, the maps must be read.
    is_known: bool,
    sync: SyncStatus,
    /// After a failure: when to try again, and the delay until then.
    retry: Option<(Instant, Duration)>,
    durations: SyncDurations,
    errors: MapUpdateErrors,
}

/// What a successful write has done.
#[derive(Debug)]
pub struct Written {
    /// The number of writes.
    pub writes: usize,
    /// Whether all services were planned, and not only some.
    pub is_whole: bool,
    /// Backends that had left the configuration and whose drain has ended.
    pub gone: Vec<BackendId>,
}

impl Writer {
    pub fn new(maps: Maps, durations: SyncDurations, errors: MapUpdateErrors) -> Self {
        Self {
            maps,
            memo: Memo::default(),
            programmed: Programmed::default(),
            is_known: false,
            sync: SyncStatus::default(),
            retry: None,
            durations,
            errors,
        }
    }

    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What the maps held after the last successful write.
    pub fn programmed(&self) -> &Programmed {
        &self.programmed
    }

    pub fn sync(&self) -> &SyncStatus {
        &self.sync
    }

    /// When to try again, after a failure.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    /// The contents of the maps as an earlier agent has left them.
    pub fn read(&mut self) -> Result<Image, MapsError> {
        let image = self.maps.read()?;
        self.maps.fit_shortcuts(&image)?;
        Ok(image)
    }

    /// Whether the wanted state fits into the maps; if not, the error says why.
    pub fn fits(&self, wanted: &Wanted, scope: &PlanScope, in_use: &FlowUse) -> Result<(), PlanError> {
        if !self.is_known {
            return Ok(());
        }
        let (mut memo, now_ns) = (self.memo.clone(), boottime_ns());
        if let PlanScope::Services(names) = scope {
            let changed = changed(wanted, names);
            let slots = self.maps.slots();
            if plan_part(wanted, &changed, &self.programmed, slots, in_use, now_ns, &mut memo)?.is_some() {
                return Ok(());
            }
        }
        plan_again(wanted, &self.programmed.image(), self.maps.slots(), in_use, now_ns, &mut memo).map(drop)
    }

    /// Plans and applies the writes. `warming_up` returns the services that are warming up; it gets
    /// the contents of the maps if all services are planned. Returns `None` on failure; the error
    /// is then in the status, and the caller tries again at [`Self::retry_at`].
    pub fn write(
        &mut self,
        scope: &PlanScope,
        wanted: &Wanted,
        in_use: &FlowUse,
        warming_up: impl FnMut(Option<&Image>) -> BTreeSet<ServiceName>,
    ) -> Option<Written> {
        let begun = Instant::now();
        let before = self.programmed.clone();
        let result = self.try_write(scope, wanted, in_use, warming_up);
        self.sync.last_duration_seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok((writes, is_whole)) => {
                if self.sync.last_error.take().is_some() {
                    info!("the maps are in sync again");
                }
                if writes > 0 || self.sync.last_success_at == 0.0 {
                    self.durations.observe(begun.elapsed());
                    debug!(writes, took_ms = self.sync.last_duration_seconds * 1000.0, "wrote the maps");
                }
                self.sync.last_success_at = unix_now();
                self.retry = None;
                Some(Written { writes, is_whole, gone: gone(&before, &self.programmed) })
            }
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// Returns the number of writes, and whether all services were planned.
    fn try_write(
        &mut self,
        scope: &PlanScope,
        wanted: &Wanted,
        in_use: &FlowUse,
        mut warming_up: impl FnMut(Option<&Image>) -> BTreeSet<ServiceName>,
    ) -> Result<(usize, bool), WriteError> {
        if let (PlanScope::Services(names), true) = (scope, self.is_known) {
            self.memo.warming_up = warming_up(None);
            let changed = changed(wanted, names);
            let (slots, now_ns) = (self.maps.slots(), boottime_ns());
            let plan = plan_part(wanted, &changed, &self.programmed, slots, in_use, now_ns, &mut self.memo);
            if let Some(mut plan) = self.planned(plan)? {
                let writes = self.apply(&mut plan)?;
                self.programmed.take(plan);
                return Ok((writes, false));
            }
        }
        let image = match scope {
            PlanScope::Services(_) | PlanScope::All(Read::Cached) if self.is_known => self.programmed.image(),
            _ => self.read_again()?,
        };
        self.memo.warming_up = warming_up(Some(&image));
        let plan = plan_again(wanted, &image, self.maps.slots(), in_use, boottime_ns(), &mut self.memo);
        let mut plan = self.planned(plan)?;
        let writes = self.apply(&mut plan)?;
        self.programmed = Programmed::of(plan, &self.programmed);
        self.is_known = true;
        Ok((writes, true))
    }

    fn planned<T>(&mut self, plan: Result<T, PlanError>) -> Result<T, WriteError> {
        if plan.is_err() {
            // The memo holds decisions of this plan, which were not written.
            self.memo.forget();
        }
        Ok(plan?)
    }

    /// Applies the writes of a plan, and returns their number.
    fn apply(&mut self, plan: &mut Plan) -> Result<usize, WriteError> {
        let writes = std::mem::take(&mut plan.writes);
        for write in &writes {
            if let Err(error) = self.maps.apply(write) {
                // The next attempt reads the maps again, including what was written so far.
                self.is_known = false;
                self.memo.forget();
                self.count(&error);
                return Err(error.into());
            }
        }
        Ok(writes.len())
    }

    /// Compares some of the slots with what was planned for them. Returns whether any differ, so
    /// that their rings must be planned again. [`super::audit`] compares the other maps.
    pub fn audit_slots(&mut self) -> bool {
        let slots = self.memo.slots().div_ceil(AUDITS_PER_ROUND);
        let audit = self.memo.audit(self.maps.slots(), AUDITED_SLOTS.max(slots));
        tell_of_changes(audit.wrong_owners);
        audit.rings > 0
    }

    /// Reads the maps, which other programs may have changed.
    fn read_again(&mut self) -> Result<Image, WriteError> {
        let image = self.read()?;
        if self.is_known {
            tell_of_changes(differences(&self.programmed.image(), &image));
        }
        Ok(image)
    }

    fn fail(&mut self, error: &WriteError) {
        self.sync.errors += 1;
        let text = error.to_string();
        let wait = self.retry.map_or(FIRST_RETRY, |(_, waited)| (waited * 2).min(LAST_RETRY));
        if self.sync.last_error.as_ref() == Some(&text) {
            debug!(error = text, retry_in = ?wait, "the maps still cannot be brought in sync");
        } else {
            error!(error = text, retry_in = ?wait, "the maps cannot be brought in sync with what is wanted");
        }
        self.sync.last_error = Some(text);
        self.retry = Some((Instant::now() + wait, wait));
    }

    fn count(&self, error: &MapsError) {
        if let MapsError::Write { map, source, .. } = error {
            let errno = std::error::Error::source(source)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .and_then(std::io::Error::raw_os_error)
                .map_or_else(|| "unknown".to_owned(), |number| format!("{:?}", nix::errno::Errno::from_raw(number)));
            self.errors.count(map, &errno);
        }
    }
}

fn tell_of_changes(differences: usize) {
    if differences > 0 {
        warn!(differences, "another program has changed the maps; writing them again");
    }
}

fn changed(wanted: &Wanted, names: &BTreeSet<ServiceName>) -> Vec<Arc<WantedService>> {
    names.iter().filter_map(|name| wanted.services.get(wanted.position(name)?).cloned()).collect()
}

/// The backends that were draining before and have been removed since.
fn gone(before: &Programmed, after: &Programmed) -> Vec<BackendId> {
    let stay: BTreeSet<u32> = after.leaving().map(|one| one.index).collect();
    let is_back = |service: u32, index: u32| {
        after.part(service).is_some_and(|part| part.indexes.values().any(|used| *used == index))
    };
    let gone = before.leaving().filter(|one| !stay.contains(&one.index) && !is_back(one.service, one.index));
    gone.map(|one| before.id_of(one)).collect()
}

/// How many kinds of entries differ.
fn differences(known: &Image, found: &Image) -> usize {
    let count = |differs: bool| usize::from(differs);
    count(known.settings != found.settings)
        + count(known.addresses != found.addresses)
        + count(known.services != found.services)
        + count(known.backends != found.backends)
        + count(known.snat_addresses != found.snat_addresses)
        + count(known.ways_out != found.ways_out)
        + count(known.peers != found.peers)
}

/// The name of the map that a write goes to.
pub const fn map_of(write: &Write) -> &'static str {
    use lb_common::limits::map;
    match write {
        Write::Settings(_) => map::SETTINGS,
        Write::SnatAddress { .. } => map::SNAT_ADDRESSES,
        Write::Backend { .. } => map::BACKENDS,
        Write::ClearBackendStats { .. } => map::BACKEND_STATS,
        Write::ClearServiceStats { .. } => map::SERVICE_STATS,
        Write::Slot { .. } | Write::Ring { .. } => map::RINGS,
        Write::Service { .. } | Write::RemoveService { .. } => "SERVICES",
        Write::Address { .. } | Write::RemoveAddress { .. } => "ADDRESSES",
        Write::Peer { .. } | Write::RemovePeer { .. } => "PEERS",
        Write::ForgetSyns { .. } => map::SYNS,
        Write::WayOut { .. } | Write::RemoveWayOut { .. } => map::WAYS_OUT,
        Write::GracePeriod => "",
    }
}
