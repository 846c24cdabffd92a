//! Probes thousands of backends, each on its own schedule, from one task, and publishes changes of
//! their health.
//!
//! A backend that dies is marked down within `fall × interval + timeout`: probes start at most one
//! interval apart, measured from start to start, whether or not the previous probe has ended, and
//! jitter only shortens the gap.

mod schedule;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::schedule::{Key, Schedule};
use super::{
    machine::{HealthView, Machine, Observation, Thresholds},
    probe::{self, Outcome},
};
use crate::{
    model::HealthCheck,
    state::{BackendId, Health, ServiceName},
};

/// One backend to probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeTarget {
    /// Also determines where the probes go: to the backend's own address.
    pub id: BackendId,
    /// All targets of a service share one.
    pub check: Arc<HealthCheck>,
    /// The health known beforehand; used only when the target is new.
    pub initial: Health,
}

/// A backend's health has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthEvent {
    pub id: BackendId,
    pub from: Health,
    pub health: Health,
    /// The result of the last probe, as text.
    pub reason: Cow<'static, str>,
    /// How many consecutive probes had the same kind of result, success or failure.
    pub consecutive: u32,
    pub at: SystemTime,
}

/// The current health view of every target. The probes write to the machines, each under a lock of
/// its own: a reader of all views delays only the probe whose view it is copying at that moment.
#[derive(Clone, Debug, Default)]
pub struct HealthViews(Arc<RwLock<BTreeMap<BackendId, SharedMachine>>>);

type SharedMachine = Arc<Mutex<Machine>>;

impl HealthViews {
    /// The views of the backends of those services whose names `is_asked` accepts.
    pub fn of(&self, is_asked: impl Fn(&ServiceName) -> bool) -> BTreeMap<BackendId, HealthView> {
        let machines: Vec<(BackendId, SharedMachine)> = {
            let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let asked = all.iter().filter(|(id, _)| is_asked(&id.service));
            asked.map(|(id, machine)| (id.clone(), machine.clone())).collect()
        };
        machines.into_iter().map(|(id, machine)| (id, lock(&machine).view().clone())).collect()
    }

    fn put(&self, id: BackendId, machine: SharedMachine) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, machine);
    }

    fn remove(&self, id: &BackendId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called with the duration of each probe.
pub type DurationHook = Box<dyn Fn(Duration) + Send + Sync>;
/// Returns the hook for a target of this service.
pub type Durations = Arc<dyn Fn(&ServiceName) -> DurationHook + Send + Sync>;

pub struct Options {
    /// Maximum number of probes in flight.
    pub concurrency: usize,
    pub durations: Durations,
}

impl Options {
    /// Allows as many concurrent probes as the limit of open files permits, up to 1024. Raises the
    /// soft limit of open files to the hard limit.
    pub fn new(durations: Durations) -> Self {
        Self { concurrency: affordable_concurrency(), durations }
    }
}

const MAX_CONCURRENCY: usize = 1024;
/// Minimum time between "probes run late" warnings.
const LATE_WARNING_EVERY: Duration = Duration::from_secs(30);

fn affordable_concurrency() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard) } else { Ok(soft) }
    });
    match limit {
        Ok(files) => usize::try_from(files / 2).map_or(MAX_CONCURRENCY, |half| half.clamp(1, MAX_CONCURRENCY)),
        Err(error) => {
            let concurrency = MAX_CONCURRENCY / 4;
            warn!(target: "weir::health", %error, concurrency, "cannot raise the limit of open files (RLIMIT_NOFILE): \
                fewer probes at once");
            concurrency
        }
    }
}

type Prober = Arc<dyn Fn(SocketAddr, Arc<HealthCheck>) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// Schedules the probes; [`Runner::run`] is its task.
pub struct Runner {
    targets: watch::Receiver<Vec<ProbeTarget>>,
    events: mpsc::Sender<HealthEvent>,
    options: Options,
    prober: Prober,
    views: HealthViews,
    keys: BTreeMap<BackendId, Key>,
    probed: BTreeMap<Key, Probed>,
    schedule: Schedule,
    in_flight: JoinSet<(Key, Observation)>,
    /// Changes that wait for room in the channel; none is lost.
    unsent: VecDeque<HealthEvent>,
    said_late: Option<Instant>,
}

struct Probed {
    target: ProbeTarget,
    machine: SharedMachine,
    on_duration: DurationHook,
}

impl Runner {
    /// Probes the current `targets`, and sends changes of health to `events`.
    pub fn new(
        targets: watch::Receiver<Vec<ProbeTarget>>,
        events: mpsc::Sender<HealthEvent>,
        options: Options,
    ) -> Self {
        Self {
            targets,
            events,
            options,
            prober: Arc::new(|address, check| Box::pin(async move { probe::probe(address, &check).await })),
            views: HealthViews::default(),
            keys: BTreeMap::new(),
            probed: BTreeMap::new(),
            schedule: Schedule::default(),
            in_flight: JoinSet::new(),
            unsent: VecDeque::new(),
            said_late: None,
        }
    }

    /// Shared access to the health views of all targets; stays valid while the runner runs.
    pub fn views(&self) -> HealthViews {
        self.views.clone()
    }

    /// Runs until `shutdown` is cancelled, or the receiver of the events is dropped.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let events = self.events.clone();
        let mut targets_may_change = true;
        self.take_over_targets();
        loop {
            self.begin_due_probes();
            let next = self.schedule.next().filter(|_| self.in_flight.len() < self.options.concurrency);
            tokio::select! {
                // Shutdown first; then results of finished probes before new probes, so that new
                // probes never delay verdicts.
                biased;
                () = shutdown.cancelled() => return,
                Some(ended) = self.in_flight.join_next() => self.judge(ended),
                room = events.reserve(), if !self.unsent.is_empty() => match (room, self.unsent.pop_front()) {
                    (Ok(room), Some(event)) => room.send(event),
                    (Err(_), _) => {
                        debug!(target: "weir::health", "nobody listens to health events: probing ends");
                        return;
                    }
                    (Ok(_), None) => {}
                },
                changed = self.targets.changed(), if targets_may_change => match changed {
                    Ok(()) => self.take_over_targets(),
                    Err(_) => targets_may_change = false,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Takes over the current targets. Targets that stay keep their state, even if their check
    /// changed.
    fn take_over_targets(&mut self) {
        let wanted = self.targets.borrow_and_update().clone();
        let now = Instant::now();
        let mut leaving = std::mem::take(&mut self.keys);
        let mut arriving = Vec::new();
        for target in wanted {
            let Some(key) = leaving.remove(&target.id) else {
                arriving.push(target);
                continue;
            };
            self.keys.insert(target.id.clone(), key);
            self.schedule.bring_forward(key, now, target.check.interval);
            if let Some(probed) = self.probed.get_mut(&key) {
                probed.target = target;
            }
        }
        for (id, key) in leaving {
            self.schedule.remove(key);
            self.probed.remove(&key);
            self.views.remove(&id);
        }
        let count = arriving.len();
        for target in arriving {
            if self.keys.contains_key(&target.id) {
                continue;
            }
            let key = self.schedule.add(now, target.check.interval, target.initial, count);
            let machine = SharedMachine::new(Machine::new(target.initial).into());
            self.views.put(target.id.clone(), machine.clone());
            self.keys.insert(target.id.clone(), key);
            let on_duration = (self.options.durations)(&target.id.service);
            self.probed.insert(key, Probed { target, machine, on_duration });
        }
    }

    fn begin_due_probes(&mut self) {
        let now = Instant::now();
        while self.in_flight.len() < self.options.concurrency {
            let Some((key, late)) = self.schedule.take_due(now) else { return };
            let Some(Probed { target, .. }) = self.probed.get(&key) else { continue };
            self.schedule.put_next(key, now, target.check.interval);
            let probing = (self.prober)(target.id.address, target.check.clone());
            self.in_flight.spawn(async move {
                let began = Instant::now().into_std();
                (key, Observation { began, outcome: probing.await })
            });
            if late > target.check.interval / 10 {
                self.say_late(now, late);
            }
        }
    }

    fn say_late(&mut self, now: Instant, late: Duration) {
        if self.said_late.is_some_and(|said| now - said < LATE_WARNING_EVERY) {
            return;
        }
        self.said_late = Some(now);
        warn!(
            target: "weir::health",
            late_ms = late.as_millis(),
            in_flight = self.in_flight.len(),
            concurrency = self.options.concurrency,
            targets = self.probed.len(),
            "probes run late and verdicts with them: shorten the time-outs, lengthen the intervals, or give the agent \
            more CPU"
        );
    }

    fn judge(&mut self, ended: Result<(Key, Observation), JoinError>) {
        let (key, observation) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                error!(target: "weir::health", %error, "a probe ended without a result");
                return;
            }
        };
        // The target may have left while its probe was in flight.
        let Some(Probed { target, machine, on_duration }) = self.probed.get(&key) else { return };
        on_duration(observation.outcome.duration());
        let change = lock(machine).observe(&observation, Thresholds::from(&*target.check), SystemTime::now());
        if let Some(change) = change {
            self.unsent.push_back(HealthEvent {
                id: target.id.clone(),
                from: change.from,
                health: change.to,
                reason: change.reason,
                consecutive: change.consecutive,
                at: change.at,
            });
        }
    }
}

#[cfg(test)]
mod tests;
