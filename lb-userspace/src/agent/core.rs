//! The agent's main task: it receives all events, and reconciles the maps accordingly.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::nat::NatTimeouts;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::handle::Command;
use super::{
    AgentOptions,
    digests::Digests,
    examine::Examination,
    flows::Counted,
    node::{Node, NodeWanted},
    reconcile::Read,
    reload::Judged,
    settle::Settled,
    trace::Tracer,
    wanted::{Desired, HealthOf, Rings, wanted},
    warmup::Warmup,
};
use crate::{
    clock::{boottime_ns, unix_now, unix_ns},
    dataplane::{
        image::Image,
        maps::Maps,
        plan::{Memo, Plan, Wanted, recover},
        settle::scope::Scope,
        stats::{Counters, Sample},
    },
    health::{HealthEvent, HealthViews, ProbeTarget},
    metrics::Metrics,
    model::{Config, Service, seed::Seed},
    overrides::{Overrides, StateDir},
    source::file::{FileSource, Loaded},
    state::{BackendId, Health},
    supervisor::{self, Report},
    view::types::{ConfigStatus, Overall, SyncStatus},
};

/// The parts that [`Agent::new`] builds the agent from.
pub struct Parts {
    pub options: AgentOptions,
    pub config: Arc<Config>,
    /// The file contents that `config` was read from.
    pub first: Arc<Loaded>,
    pub seed: Seed,
    pub overrides: Overrides,
    pub state_dir: StateDir,
    pub source: FileSource,
    pub commands: mpsc::Receiver<Command>,
    pub health: mpsc::Receiver<HealthEvent>,
    pub views: HealthViews,
    pub targets: watch::Sender<Vec<ProbeTarget>>,
    pub node: watch::Receiver<Node>,
    pub node_wanted: watch::Sender<NodeWanted>,
    pub census: watch::Receiver<Counted>,
    pub flow_timeouts: watch::Sender<Option<NatTimeouts>>,
    pub settled: watch::Receiver<Settled>,
    pub settle_scope: watch::Sender<Option<Scope>>,
    pub maps: Maps,
    pub counters: Counters,
    pub metrics: Metrics,
    pub examination: Examination,
    pub tracer: Tracer,
    pub now_ns: u64,
}

/// The agent's main task, which owns the maps.
pub struct Agent {
    pub(super) options: AgentOptions,
    pub(super) desired: Desired,
    pub(super) state_dir: StateDir,
    pub(super) source: FileSource,
    pub(super) loaded: watch::Receiver<Arc<Loaded>>,
    commands: Option<mpsc::Receiver<Command>>,
    health_events: mpsc::Receiver<HealthEvent>,
    pub(super) views: HealthViews,
    targets: watch::Sender<Vec<ProbeTarget>>,
    pub(super) node: watch::Receiver<Node>,
    pub(super) node_wanted: watch::Sender<NodeWanted>,
    pub(super) census: watch::Receiver<Counted>,
    pub(super) flow_timeouts: watch::Sender<Option<NatTimeouts>>,
    pub(super) settled: watch::Receiver<Settled>,
    pub(super) settle_scope: watch::Sender<Option<Scope>>,
    pub(super) maps: Maps,
    pub(super) counters: Counters,
    pub(super) metrics: Metrics,
    pub(super) examination: Examination,
    pub(super) tracer: Tracer,

    pub(super) health: HealthOf,
    pub(super) rings: Rings,
    pub(super) memo: Memo,
    pub(super) warmup: Warmup,
    /// Contents of the maps after the last successful reconciliation; `None` if the maps must be
    /// read.
    pub(super) programmed: Option<Image>,
    pub(super) plan: Plan,
    /// Names of services by id, including services that were removed while this agent was running.
    pub(super) names: BTreeMap<u32, String>,
    pub(super) digests: Digests,
    pub(super) sync: SyncStatus,
    pub(super) config_status: ConfigStatus,
    pub(super) judged: Judged,
    /// After a failure: when to try again, and the delay until then.
    pub(super) retry: Option<(tokio::time::Instant, Duration)>,
    pub(super) samples: Samples,
    pub(super) started_at: f64,
    /// When each service became known to this agent.
    pub(super) seen_since: BTreeMap<String, Instant>,
    pub(super) overall: (Overall, f64),
    /// Until when backends without a verdict keep the agent from being ready; `None` once it has
    /// been ready.
    pub(super) starting_until: Option<Instant>,
    /// The last report to the supervisor.
    pub(super) told: Report,
    /// Something has changed since the last report: send a new one with the next tick.
    pub(super) is_report_due: bool,
}

/// The last two samples of the counters, for rates. The older is at least a second old.
#[derive(Default)]
pub struct Samples {
    pub(super) older: Option<Sample>,
    newer: Option<Sample>,
}

impl Samples {
    fn add(&mut self, sample: Sample) {
        self.older = self.newer.replace(sample);
    }
}

const TICK: Duration = Duration::from_secs(1);
/// The maps are read in full every this many ticks, so that manual edits are corrected.
const READ_EVERY: u32 = 5;

impl Agent {
    pub fn new(parts: Parts) -> Self {
        let loaded = parts.source.loaded();
        let start_time = startup_time(&parts.config.services);
        Self {
            config_status: ConfigStatus {
                path: parts.options.config.display().to_string(),
                loaded_at: unix_now(),
                last_reload_ok: true,
                errors: Vec::new(),
            },
            judged: Judged::accepted(parts.first),
            options: parts.options,
            desired: Desired {
                limits: parts.config.node.limits,
                config: parts.config,
                seed: parts.seed,
                overrides: parts.overrides,
                since_ns: parts.now_ns,
                is_traced: false,
            },
            state_dir: parts.state_dir,
            source: parts.source,
            loaded,
            commands: Some(parts.commands),
            health_events: parts.health,
            views: parts.views,
            targets: parts.targets,
            node: parts.node,
            node_wanted: parts.node_wanted,
            census: parts.census,
            flow_timeouts: parts.flow_timeouts,
            settled: parts.settled,
            settle_scope: parts.settle_scope,
            maps: parts.maps,
            counters: parts.counters,
            metrics: parts.metrics,
            examination: parts.examination,
            tracer: parts.tracer,
            health: HealthOf::new(),
            rings: Rings::default(),
            memo: Memo::default(),
            warmup: Warmup::default(),
            programmed: None,
            plan: Plan::default(),
            names: BTreeMap::new(),
            digests: Digests::default(),
            sync: SyncStatus::default(),
            retry: None,
            samples: Samples::default(),
            started_at: unix_now(),
            seen_since: BTreeMap::new(),
            overall: (Overall::Down, unix_now()),
            starting_until: Some(Instant::now() + start_time),
            told: Report::default(),
            is_report_due: true,
        }
    }

    /// Runs until `shutdown` is cancelled. Leaves the maps as they are.
    pub async fn run(mut self, mut hangup: Signal, shutdown: CancellationToken) {
        let Some(mut commands) = self.commands.take() else { return };
        self.recover();
        self.publish_targets();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = supervisor::watchdog_interval().map(interval);
        let mut tick = 0_u32;
        loop {
            let retry = self.retry.map(|(at, _)| at);
            tokio::select! {
                // In order of urgency: shutdown; health, because connections wait for it; commands,
                // because people wait for them; then everything that can wait a moment.
                biased;
                () = shutdown.cancelled() => {
                    self.trace(false);
                    return;
                }
                Some(event) = self.health_events.recv() => self.take_health(event),
                Some(command) = commands.recv() => self.command(command).await,
                _ = hangup.recv() => self.reload_by_signal().await,
                Ok(()) = self.loaded.changed() => {
                    let loaded = self.loaded.borrow_and_update().clone();
                    self.follow(&loaded);
                }
                Ok(()) = self.node.changed() => {
                    self.node.mark_unchanged();
                    // The SNAT addresses may have changed.
                    self.desired.since_ns = boottime_ns();
                    self.reconcile(Read::Cached);
                    self.is_report_due = true;
                }
                Ok(()) = self.census.changed() => {
                    self.census.mark_unchanged();
                    if self.awaits_flows() {
                        self.reconcile(Read::Cached);
                    }
                }
                Ok(()) = self.tracer.is_wanted.changed() => {
                    let is_wanted = *self.tracer.is_wanted.borrow_and_update();
                    self.trace(is_wanted);
                }
                () = sleep_until(retry.unwrap_or_else(tokio::time::Instant::now)), if retry.is_some() => self.reconcile(Read::Maps),
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.tick(tick.is_multiple_of(READ_EVERY));
                }
                () = next(&mut watchdog) => supervisor::alive(),
            }
        }
    }

    /// Takes over the state in the maps: the health here, and every index, drain and counter
    /// through each plan.
    fn recover(&mut self) {
        match self.maps.read().and_then(|image| self.maps.fit_shortcuts(&image).map(|()| image)) {
            Ok(image) => {
                let recovered = recover(&self.wanted(), &image);
                let known = recovered.health.values().filter(|(health, _)| *health != Health::Unknown).count();
                if !image.services.is_empty() {
                    info!(
                        services = image.services.len(),
                        backends = image.backends.values().filter(|backend| backend.family != 0).count(),
                        known_health = known,
                        "took over the running data path"
                    );
                    self.warn_of_another_key(&image);
                }
                self.health = recovered.health;
                self.programmed = Some(image);
            }
            // The first reconciliation meets the same error, and reports it.
            Err(error) => warn!(%error, "cannot read the maps: health and drains from before are not known"),
        }
    }

    fn warn_of_another_key(&self, image: &Image) {
        let key = lb_common::hash::HashKey::from_seed(self.desired.seed);
        if image.settings.is_some_and(|settings| settings.hash_key != key) {
            warn!(
                "the hash seed is another one than the running data path's: new connections of known clients may go elsewhere"
            );
        }
    }

    /// Switches the tracing of the BPF programs' decisions on or off.
    fn trace(&mut self, is_wanted: bool) {
        if std::mem::replace(&mut self.desired.is_traced, is_wanted) != is_wanted {
            self.reconcile(Read::Cached);
        }
    }

    pub(super) fn wanted(&mut self) -> Wanted {
        let node = self.node.borrow().clone();
        wanted(&self.desired, &self.health, &node, &mut self.rings)
    }

    /// Sends the list of backends to probe to the health runner.
    pub(super) fn publish_targets(&self) {
        let mut targets = Vec::new();
        for service in &self.desired.config.services {
            let Some(check) = &service.health else { continue };
            for backend in &service.backends {
                let id = BackendId { service: service.name.clone(), address: backend.address };
                let initial = self.health.get(&id).map_or(Health::Unknown, |(health, _)| *health);
                targets.push(ProbeTarget { id, address: backend.address, check: check.clone(), initial });
            }
        }
        self.targets.send_replace(targets);
    }

    /// Takes all pending verdicts, and writes them to the maps together.
    fn take_health(&mut self, first: HealthEvent) {
        let begun = Instant::now();
        let mut events = vec![first];
        while let Ok(event) = self.health_events.try_recv() {
            events.push(event);
        }
        events.retain(|event| self.is_probed(&event.id));
        for event in &events {
            self.health.insert(event.id.clone(), (event.health, unix_ns(event.at)));
        }
        if events.is_empty() {
            return;
        }
        self.reconcile(Read::Cached);
        self.is_report_due = true;
        let took = begun.elapsed();
        for event in events {
            let (up, all) = self.count_up(&event.id.service);
            let took_ms = took.as_secs_f64() * 1000.0;
            let HealthEvent { id, from, health, reason, consecutive, .. } = event;
            let service = &id.service;
            let backend = id.address;
            let (from, health) = (from.name(), health.name());
            if self.sync.last_error.is_some() {
                warn!(service, %backend, from, to = health, reason, consecutive, up, all, "health changed, but the maps could not be written");
            } else {
                info!(service, %backend, from, to = health, reason, consecutive, up, all, took_ms, "health changed");
            }
        }
    }

    fn is_probed(&self, id: &BackendId) -> bool {
        let service = self.desired.config.services.iter().find(|service| service.name == id.service);
        service.is_some_and(|service| {
            service.health.is_some() && service.backends.iter().any(|backend| backend.address == id.address)
        })
    }

    /// How many of a service's backends are up, and how many there are.
    fn count_up(&self, service: &str) -> (usize, usize) {
        let config = &self.desired.config;
        let Some(service) = config.services.iter().find(|one| one.name == service) else { return (0, 0) };
        let is_up = |address| {
            let id = BackendId { service: service.name.clone(), address };
            self.health.get(&id).is_some_and(|(health, _)| *health == Health::Up)
        };
        (service.backends.iter().filter(|backend| is_up(backend.address)).count(), service.backends.len())
    }

    fn tick(&mut self, reads: bool) {
        let ends = self.plan.next_ns.is_some_and(|next| boottime_ns() >= next);
        if self.retry.is_none() && (reads || ends) {
            self.reconcile(if reads { Read::Maps } else { Read::Cached });
        }
        if let Some(sample) = self.sample() {
            self.samples.add(sample);
        }
        self.become_ready();
        if reads {
            self.ask_for_time();
            // Evaluates the state even if nobody asks, so that the time of its last change is
            // correct.
            drop(self.snapshot());
        }
        if reads || self.is_report_due {
            self.tell();
        }
    }

    pub(super) fn sample(&self) -> Option<Sample> {
        let services = self.plan.target.services.values().map(|service| service.stats).collect();
        let backends = self.plan.target.backends.iter().filter(|(_, backend)| backend.family != 0);
        let interfaces = self.node.borrow().hooks.iter().map(|hook| hook.ifindex).collect();
        match self.counters.sample(&services, &backends.map(|(index, _)| *index).collect(), &interfaces) {
            Ok(sample) => Some(sample),
            Err(error) => {
                warn!(%error, "cannot read the counters");
                None
            }
        }
    }
}

/// A time long enough for every backend's first verdict.
pub(super) fn startup_time<'a>(services: impl IntoIterator<Item = &'a Service>) -> Duration {
    let checks = services.into_iter().filter_map(|service| service.health.as_ref());
    checks.map(|check| check.interval * check.fall + check.timeout).max().unwrap_or_default()
}

async fn next(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
