//! Brings the maps to the desired state, and tries again when the kernel refuses.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_common::service::address::SNAT;
use tokio::task::block_in_place;
use tracing::{debug, error, info, warn};

use super::{core::Agent, trace::Names, wanted::nat_timeouts};
use crate::{
    clock::{boottime_ns, unix_now},
    dataplane::{
        image::{Image, Write},
        maps::MapsError,
        plan::{Leaving, Plan, PlanError, plan_again},
        settle::scope::Scope,
    },
    state::BackendId,
};

/// Where the current contents of the maps are taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// The contents written last: a change of health must not wait until all maps are read. Slots
    /// are read in any case.
    Cached,
    /// The maps themselves.
    Maps,
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// How many slots an audit compares at least; it goes on where the last one ended.
const AUDITED_SLOTS: usize = 1 << 20;
/// After so many audits every slot has been compared, however many there are.
const AUDITS_PER_ROUND: usize = 12;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) fn reconcile(&mut self, read: Read) {
        if !self.node.borrow().is_known {
            return;
        }
        let begun = Instant::now();
        let before = std::mem::take(&mut self.plan.leaving);
        let result = block_in_place(|| self.write(read));
        self.sync.last_duration_seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(writes) => {
                if self.sync.last_error.take().is_some() {
                    info!("the maps are in step again");
                }
                if writes > 0 || self.sync.last_success_at == 0.0 {
                    self.metrics.sync_durations().observe(begun.elapsed());
                    debug!(writes, took_ms = self.sync.last_duration_seconds * 1000.0, "wrote the maps");
                }
                self.sync.last_success_at = unix_now();
                self.retry = None;
                self.say_who_is_gone(&before);
                self.begin_to_serve();
            }
            Err(error) => {
                self.plan.leaving = before;
                self.fail(&error);
            }
        }
    }

    /// Plans and applies the writes to the maps. Returns the number of writes.
    fn write(&mut self, read: Read) -> Result<usize, ReconcileError> {
        let image = match (self.programmed.take(), read) {
            (Some(image), Read::Cached) => image,
            (known, _) => self.audited(known.as_ref())?,
        };
        let wanted = self.wanted();
        let in_use = self.census.borrow().in_use();
        self.memo.warming_up = self.warmup.admit(&self.desired, &image, Instant::now());
        let plan = plan_again(&wanted, &image, self.maps.slots(), &in_use, boottime_ns(), &mut self.memo);
        let mut plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                // What the memo has decided by now was not written.
                self.memo.forget();
                self.programmed = Some(image);
                return Err(error.into());
            }
        };
        let writes = std::mem::take(&mut plan.writes);
        for write in &writes {
            if let Err(error) = self.maps.apply(write) {
                // The next attempt reads the maps again, including what was written so far.
                self.memo.forget();
                self.count(&error);
                return Err(error.into());
            }
        }
        let writes = writes.len();
        if writes > 0 {
            self.digests.clear();
        }
        let scope = Some(Scope::of(&wanted, &plan));
        self.settle_scope.send_if_modified(|told| {
            let differs = *told != scope;
            *told = scope;
            differs
        });
        self.warmup.expire(&self.desired, &self.health, Instant::now());
        self.remember(plan);
        Ok(writes)
    }

    /// The contents of the maps, of which some slots are compared with what was decided. `known` is
    /// what the maps held last.
    fn audited(&mut self, known: Option<&Image>) -> Result<Image, ReconcileError> {
        let image = self.maps.read()?;
        self.maps.fit_shortcuts(&image)?;
        let budget = AUDITED_SLOTS.max(slots_of(&image) / AUDITS_PER_ROUND);
        let audit = self.memo.audit(self.maps.slots(), budget);
        let differences = audit.wrong_owners + known.map_or(0, |known| differences(known, &image));
        if audit.rings > 0 || known != Some(&image) {
            self.digests.clear();
        }
        if differences > 0 {
            warn!(differences, "somebody else has changed the maps: putting them right");
        }
        Ok(image)
    }

    fn remember(&mut self, plan: Plan) {
        for (name, id) in &plan.services {
            self.names.insert(*id, name.clone());
            self.seen_since.entry(name.clone()).or_insert_with(Instant::now);
        }
        self.seen_since.retain(|name, _| plan.services.contains_key(name));
        self.programmed = Some(plan.target.clone());
        self.plan = plan;
        if self.desired.is_traced {
            let names = Names::new(&self.plan.target, |id| self.service_name(id), &self.node.borrow().interfaces);
            self.tracer.names.send_replace(names);
        }
    }

    /// The maps are in the desired state: from now on, hooks may be attached and flows counted.
    fn begin_to_serve(&mut self) {
        self.node_wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.attach, true));
        let timeouts = Some(nat_timeouts(&self.desired.config.node.timeouts));
        self.flow_timeouts.send_if_modified(|told| std::mem::replace(told, timeouts) != timeouts);
    }

    /// Whether anything is kept only until the census shows that no flow needs it any more.
    pub(super) fn awaits_flows(&self) -> bool {
        let target = &self.plan.target;
        !self.plan.leaving.is_empty()
            || target.services.values().any(|service| service.draining_since_ns > 0)
            || target.addresses.iter().any(|(address, bits)| {
                bits & SNAT != 0 && !target.snat_addresses.iter().flatten().any(|used| used == address)
            })
    }

    fn say_who_is_gone(&mut self, before: &[Leaving]) {
        let after = &self.plan.leaving;
        let stay: BTreeSet<u32> = after.iter().map(|one| one.index).collect();
        for gone in before.iter().filter(|one| !stay.contains(&one.index)) {
            let is_back = self.plan.backends.values().any(|index| *index == gone.index);
            if !is_back {
                let service = self.service_name(gone.service);
                info!(service, backend = %gone.address, "gone: it had left the configuration and its drain has ended");
            }
        }
        // Otherwise, the overrides of a backend that is gone would apply to a later backend with
        // the same address.
        if before.len() > after.len() {
            self.forget_overrides();
        }
        let plan = &self.plan;
        let leaving = plan.leaving.iter().map(|one| one.service);
        let used: BTreeSet<u32> = plan
            .services
            .values()
            .copied()
            .chain(leaving)
            .chain(plan.target.services.values().map(|service| service.id))
            .collect();
        self.names.retain(|id, _| used.contains(id));
    }

    pub(super) fn forget_overrides(&mut self) {
        let leaving: Vec<BackendId> = self
            .plan
            .leaving
            .iter()
            .map(|one| BackendId {
                service: self.names.get(&one.service).cloned().unwrap_or_default(),
                address: one.address,
            })
            .collect();
        let forgotten = self.desired.overrides.forget_gone(&self.desired.config, |id| leaving.contains(id));
        if forgotten.is_empty() {
            return;
        }
        for id in &forgotten {
            info!(backend = %id, "forgot what was set by the CLI: the backend is gone");
        }
        if let Err(error) = self.state_dir.save(&self.desired.overrides) {
            warn!(%error, "cannot save what is set by the CLI");
        }
    }

    fn fail(&mut self, error: &ReconcileError) {
        self.sync.errors += 1;
        let text = error.to_string();
        let wait = self.retry.map_or(FIRST_RETRY, |(_, waited)| (waited * 2).min(LAST_RETRY));
        if self.sync.last_error.as_ref() == Some(&text) {
            debug!(error = text, retry_in = ?wait, "the maps still cannot be brought in step");
        } else {
            error!(error = text, retry_in = ?wait, "the maps cannot be brought in step with what is wanted");
        }
        self.sync.last_error = Some(text);
        self.retry = Some((tokio::time::Instant::now() + wait, wait));
    }

    fn count(&self, error: &MapsError) {
        if let MapsError::Write { map, source, .. } = error {
            let errno = std::error::Error::source(source)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .and_then(std::io::Error::raw_os_error)
                .map_or_else(|| "unknown".to_owned(), |number| format!("{:?}", nix::errno::Errno::from_raw(number)));
            self.metrics.map_update_errors().count(map, &errno);
        }
    }
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

fn slots_of(image: &Image) -> usize {
    image.ranges().into_iter().map(|(_, len)| len as usize).sum()
}

/// The map that a write goes to, by name. A function so that these names are in one place.
pub(super) const fn map_of(write: &Write) -> &'static str {
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
