//! The agent's main task: it owns the maps, receives all events that change their desired contents,
//! writes them, and publishes what it wrote. Other tasks answer queries.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use lb_common::hash::HashKey;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Duration, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    desired::{Desired, HealthOf, RingCache, is_judged, nat_timeouts, wanted, wanted_service},
    flows::{Counted, WantedPasses},
    handle::{Applied, Command, failed_reload},
    node::{Node, NodeWanted},
    overriding::{self, choose},
    published::Published,
    reload::{File, Reload, carry_health, changed_services, needs_larger_maps, needs_restart, summary},
    report::outcome_of_reload,
    trace::Names,
    warmup::{Warmup, startup_time},
    writer::{PlanScope, Read, Writer},
};
use crate::{
    clock::{boottime_ns, unix_ns},
    dataplane::{
        image::Image,
        plan::{PlanError, Wanted, recover},
        settle,
    },
    health::{HealthEvent, ProbeTarget},
    model::{Config, incompatible, need::Need, seed::Seed},
    overrides::{Overrides, StateDir},
    source::{
        Heard,
        file::Loaded,
        holds,
        merge::{Merged, Refusal, Unfit, merge, new_refusals, without_room},
    },
    state::{BackendId, Health, ServiceName},
    supervisor,
    view::types::{ApiError, BackendSelector, ErrorCode},
};

/// The channels between the owner and the other tasks of the agent.
pub struct Links {
    pub commands: mpsc::Receiver<Command>,
    pub health: mpsc::Receiver<HealthEvent>,
    /// The services from the sources other than the file.
    pub sources: watch::Receiver<Heard>,
    /// The backends to probe.
    pub targets: watch::Sender<Vec<ProbeTarget>>,
    pub node: watch::Receiver<Arc<Node>>,
    pub node_wanted: watch::Sender<NodeWanted>,
    pub census: watch::Receiver<Counted>,
    pub flow_passes: watch::Sender<Option<WantedPasses>>,
    pub settle_scope: watch::Sender<Option<settle::scope::SettleScope>>,
    /// How many times the audit has found that the maps differ from what was written.
    pub audited: watch::Receiver<u64>,
    /// Each send makes the heap task return free memory to the kernel.
    pub give_back: watch::Sender<()>,
    /// The configuration that the doctor checks.
    pub examined: watch::Sender<Arc<Config>>,
    /// Whether any client traces the decisions of the BPF programs.
    pub is_traced: watch::Receiver<bool>,
    /// The names of services, backends and interfaces, which trace events give by number.
    pub trace_names: watch::Sender<Names>,
}

/// The owner of the maps.
pub struct Owner {
    desired: Desired,
    /// The health of the backends, from the probes' events.
    health: HealthOf,
    /// The desired contents of the maps, computed from `desired`, `health` and the node.
    wanted: Wanted,
    rings: RingCache,
    warmup: Warmup,
    writer: Writer,
    file: File,
    /// The configuration from the file alone; `desired` has the services of all sources.
    file_config: Arc<Config>,
    /// The refused services of the other sources.
    refusals: Arc<Vec<Refusal>>,
    state_dir: StateDir,
    links: Links,
    /// Services to plan again at the next tick.
    due: BTreeSet<ServiceName>,
    ticked_at: Instant,
    /// When each service became known to this agent.
    seen_since: Arc<BTreeMap<ServiceName, Instant>>,
    /// When the agent becomes ready even if some backends still have no verdict; `None` once it has
    /// been ready.
    starting_until: Option<Instant>,
    reloads: u64,
    publish: watch::Sender<Arc<Published>>,
}

const TICK: Duration = Duration::from_secs(1);
/// How often a starting agent checks whether it is ready.
const STARTING_TICK: Duration = Duration::from_millis(100);
/// A plan of more writes than this has taken much memory, which is returned to the kernel.
const MANY_WRITES: usize = 16_384;
/// After this many ticks, all services are planned again, whether or not anything has changed.
const PLAN_EVERY: u32 = 300;
/// After this many ticks, refused services are tried again, because there may be room by then.
const RETRY_REFUSED_EVERY: u32 = 60;

/// What the owner begins with.
pub struct Start {
    /// The configuration from the file.
    pub config: Arc<Config>,
    pub seed: Seed,
    pub overrides: Overrides,
    pub state_dir: StateDir,
    pub file: File,
    pub writer: Writer,
    /// Rings of the configuration's services that are already built, if any.
    pub rings: RingCache,
}

impl Owner {
    /// The owner, and the receiver of the state that it publishes.
    pub fn new(start: Start, links: Links) -> (Self, watch::Receiver<Arc<Published>>) {
        let Start { config: file_config, seed, overrides, state_dir, file, writer, mut rings } = start;
        let limits = file_config.node.limits;
        let heard = links.sources.borrow().clone();
        // The services of other sources that the state directory remembers were served before this
        // start, so they count as running.
        let mut remembered: Vec<_> = heard.values().flat_map(|said| said.services.iter().cloned()).collect();
        remembered.sort_by(|a, b| a.name.cmp(&b.name));
        let running = Config { node: file_config.node.clone(), services: remembered };
        let Merged { config, refusals } = merge(&file_config, &heard, &Unfit::new(), &running, &limits);
        let startup_time = startup_time(&config.services);
        let desired = Desired {
            config: Arc::new(config),
            limits,
            holds: holds(&heard),
            seed,
            overrides,
            since_ns: boottime_ns(),
            is_traced: false,
        };
        note_refusals(&[], &refusals);
        let refusals = Arc::new(refusals);
        let health = HealthOf::new();
        let wanted = wanted(&desired, &health, &links.node.borrow(), &mut rings);
        let published = Published {
            desired: desired.clone(),
            wanted: wanted.clone(),
            programmed: writer.programmed().clone(),
            seen_since: Arc::default(),
            sync: writer.sync().clone(),
            config: file.status.clone(),
            heard,
            refusals: refusals.clone(),
            is_starting: true,
            reloads: 0,
        };
        let (publish, seen) = watch::channel(Arc::new(published));
        let owner = Self {
            desired,
            health,
            wanted,
            rings,
            warmup: Warmup::default(),
            writer,
            file,
            file_config,
            refusals,
            state_dir,
            links,
            due: BTreeSet::new(),
            ticked_at: Instant::now(),
            seen_since: Arc::default(),
            starting_until: Some(Instant::now() + startup_time),
            reloads: 0,
            publish,
        };
        (owner, seen)
    }

    /// Runs until `shutdown` is cancelled. Leaves the maps as they are.
    pub async fn run(mut self, mut hangup: Signal, shutdown: CancellationToken) {
        self.recover();
        // Which includes the services of the other sources.
        self.links.examined.send_replace(self.desired.config.clone());
        self.publish_targets();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut starting_ticks = interval(STARTING_TICK);
        starting_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = supervisor::watchdog_interval().map(interval);
        let mut tick = 0_u32;
        loop {
            let retry = self.writer.retry_at().map(tokio::time::Instant::from_std);
            tokio::select! {
                // In order of urgency: shutdown; health, because connections wait for it; commands,
                // because people wait for them; then everything that can wait a moment.
                biased;
                () = shutdown.cancelled() => {
                    self.trace(false);
                    return;
                }
                Some(event) = self.links.health.recv() => self.take_health(event),
                Some(command) = self.links.commands.recv() => self.command(command).await,
                _ = hangup.recv() => self.reload_by_signal().await,
                Ok(()) = self.file.loaded.changed() => {
                    let loaded = self.file.loaded.borrow_and_update().clone();
                    self.follow(&loaded);
                }
                Ok(()) = self.links.sources.changed() => self.take_sources(),
                Ok(()) = self.links.node.changed() => {
                    self.links.node.mark_unchanged();
                    // The SNAT addresses may have changed.
                    self.desired.since_ns = boottime_ns();
                    self.reconcile(PlanScope::All(Read::Cached));
                }
                Ok(()) = self.links.census.changed() => {
                    self.links.census.mark_unchanged();
                    self.end_drains();
                }
                Ok(()) = self.links.audited.changed() => {
                    self.links.audited.mark_unchanged();
                    self.reconcile(PlanScope::All(Read::Maps));
                }
                Ok(()) = self.links.is_traced.changed() => {
                    let is_traced = *self.links.is_traced.borrow_and_update();
                    self.trace(is_traced);
                }
                () = sleep_until(retry.unwrap_or_else(tokio::time::Instant::now)), if retry.is_some() => {
                    self.reconcile(PlanScope::All(Read::Maps));
                }
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.tick(tick);
                }
                _ = starting_ticks.tick(), if self.starting_until.is_some() => self.become_ready(),
                () = next(&mut watchdog) => supervisor::alive(),
            }
        }
    }

    /// Takes over the state that an earlier agent left in the maps. Health is read here; indexes,
    /// drains and counters are kept because each plan starts from the contents of the maps.
    fn recover(&mut self) {
        match self.writer.read() {
            Ok(image) => {
                let recovered = recover(&self.wanted, &image, self.writer.maps().slots());
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
            }
            // The first reconciliation meets the same error, and reports it.
            Err(error) => warn!(%error, "cannot read the maps: health and drains from before are not known"),
        }
    }

    fn warn_of_another_key(&self, image: &Image) {
        let key = HashKey::from_seed(self.desired.seed);
        if image.settings.is_some_and(|settings| settings.hash_key != key) {
            warn!(
                "the hash seed is another one than the running data path's: new connections of known clients may go \
                elsewhere"
            );
        }
    }

    /// Computes the desired contents of the maps, writes them, and publishes the outcome.
    fn reconcile(&mut self, scope: PlanScope) {
        self.refresh(&scope);
        self.write_and_publish(&scope);
    }

    fn write_and_publish(&mut self, scope: &PlanScope) {
        if self.links.node.borrow().is_known {
            self.write(scope);
        }
        self.publish();
    }

    fn refresh(&mut self, scope: &PlanScope) {
        let node = self.links.node.borrow();
        let PlanScope::Services(names) = scope else {
            self.wanted = wanted(&self.desired, &self.health, &node, &mut self.rings);
            return;
        };
        for service in names.iter().filter_map(|name| self.desired.config.service(name)) {
            let at = self.wanted.position(&service.name);
            if let Some(wanted) = at.and_then(|at| self.wanted.services.get_mut(at)) {
                *wanted = wanted_service(service, &self.desired, &self.health, &node, &mut self.rings).into();
            }
        }
    }

    fn write(&mut self, scope: &PlanScope) {
        let in_use = self.links.census.borrow().in_use();
        let (desired, warmup) = (&self.desired, &mut self.warmup);
        let warming_up = |image: Option<&Image>| match image {
            Some(image) => warmup.admit(desired, image, Instant::now()),
            None => warmup.names(),
        };
        let written = block_in_place(|| self.writer.write(scope, &self.wanted, &in_use, warming_up));
        let Some(written) = written else { return };
        let expired = self.warmup.expire(&self.desired, &self.health, Instant::now());
        let scope_differs = written.is_whole || !expired.is_empty();
        self.due.extend(expired);
        for gone in &written.gone {
            let BackendId { service, address } = gone;
            info!(%service, backend = %address, "gone: it had left the configuration and its drain has ended");
        }
        // Otherwise, the overrides of a backend that is gone would apply to a later backend with
        // the same address.
        if !written.gone.is_empty() {
            self.forget_overrides();
        }
        if scope_differs {
            self.note_scope();
        }
        if written.is_whole {
            self.note_services();
        }
        if written.writes > MANY_WRITES {
            self.links.give_back.send_replace(());
        }
        if written.writes > 0 {
            // Wakes the settle task, because the written slots may have to settle.
            self.links.settle_scope.send_modify(|_| {});
        }
        if self.desired.is_traced {
            let programmed = self.writer.programmed();
            let node = self.links.node.borrow();
            let names = Names::new(&programmed.image(), |id| programmed.name(id).to_string(), &node.interfaces);
            self.links.trace_names.send_replace(names);
        }
        // The maps are in the desired state: from now on, hooks may be attached and flows counted.
        self.links.node_wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.attach, true));
        let programmed = self.writer.programmed();
        let passes = Some(WantedPasses {
            timeouts: nat_timeouts(&self.desired.config.node.timeouts),
            is_awaited: programmed.parts().any(|part| part.next_ns.is_some()) || programmed.keeps_for_flows(),
        });
        self.links.flow_passes.send_if_modified(|told| std::mem::replace(told, passes) != passes);
    }

    /// Tells the settle task which rings there are.
    fn note_scope(&self) {
        let scope = Some(settle::scope::SettleScope::of(&self.wanted, self.writer.programmed(), &self.warmup.names()));
        self.links.settle_scope.send_if_modified(|told| {
            let differs = *told != scope;
            *told = scope;
            differs
        });
    }

    /// Updates `seen_since` if the set of services has changed.
    fn note_services(&mut self) {
        let services = &self.desired.config.services;
        let is_same = self.seen_since.keys().eq(services.iter().map(|service| &service.name));
        if !is_same {
            let since = |name: &ServiceName| self.seen_since.get(name).copied().unwrap_or_else(Instant::now);
            let seen = services.iter().map(|service| (service.name.clone(), since(&service.name)));
            self.seen_since = Arc::new(seen.collect());
        }
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(Published {
            desired: self.desired.clone(),
            wanted: self.wanted.clone(),
            programmed: self.writer.programmed().clone(),
            seen_since: self.seen_since.clone(),
            sync: self.writer.sync().clone(),
            config: self.file.status.clone(),
            heard: self.links.sources.borrow().clone(),
            refusals: self.refusals.clone(),
            is_starting: self.starting_until.is_some(),
            reloads: self.reloads,
        }));
    }

    fn tick(&mut self, tick: u32) {
        self.ticked_at = Instant::now();
        if self.writer.retry_at().is_none() {
            self.plan_what_is_due(tick);
        }
    }

    fn plan_what_is_due(&mut self, tick: u32) {
        let expired = self.warmup.expire(&self.desired, &self.health, Instant::now());
        if !expired.is_empty() {
            self.note_scope();
        }
        self.due.extend(expired);
        let now_ns = boottime_ns();
        let programmed = self.writer.programmed();
        let mut is_whole = tick.is_multiple_of(PLAN_EVERY);
        for part in programmed.parts().filter(|part| part.next_ns.is_some_and(|next| now_ns >= next)) {
            if programmed.is_wanted(part) {
                self.due.insert(part.name.clone());
            }
            // VIPs that are kept only until their flows end may be due, too; removing them takes a
            // plan of all services.
            is_whole |= !programmed.is_wanted(part) || programmed.keeps_for_flows();
        }
        if tick.is_multiple_of(RETRY_REFUSED_EVERY) && !self.refusals.is_empty() {
            self.take_sources();
        }
        is_whole |= block_in_place(|| self.writer.audit_slots());
        if is_whole {
            self.due.clear();
            self.reconcile(PlanScope::All(Read::Cached));
        } else {
            self.reconcile_due();
        }
    }

    fn reconcile_due(&mut self) {
        let due = std::mem::take(&mut self.due);
        if !due.is_empty() {
            self.reconcile(PlanScope::Services(due));
        }
    }

    /// Ends the drains of backends and VIPs that have no flows left, by the latest census.
    fn end_drains(&mut self) {
        let programmed = self.writer.programmed();
        let mut is_whole = programmed.keeps_for_flows();
        let mut services = BTreeSet::new();
        for part in programmed.parts().filter(|part| !part.leaving.is_empty()) {
            is_whole |= !programmed.is_wanted(part);
            services.insert(part.name.clone());
        }
        if is_whole {
            self.reconcile(PlanScope::All(Read::Cached));
        } else if !services.is_empty() {
            self.reconcile(PlanScope::Services(services));
        }
    }

    /// The agent is ready once the maps are written, hooks are attached, and every backend has a
    /// verdict or has had enough time for one.
    fn become_ready(&mut self) {
        let Some(until) = self.starting_until else { return };
        let is_attached = self.links.node.borrow().hooks.iter().any(|hook| hook.xdp.is_some());
        if !is_attached || self.writer.sync().last_success_at == 0.0 {
            return;
        }
        if Instant::now() >= until || is_judged(&self.desired, &self.health) {
            // Write the last verdicts to the slots before reporting that the agent is ready.
            self.reconcile_due();
            if self.writer.sync().last_error.is_some() && Instant::now() < until {
                return;
            }
            self.starting_until = None;
            self.publish();
            self.links.give_back.send_replace(());
            info!("ready");
        }
    }

    /// Switches the tracing of the BPF programs' decisions on or off.
    fn trace(&mut self, is_wanted: bool) {
        if std::mem::replace(&mut self.desired.is_traced, is_wanted) != is_wanted {
            self.reconcile(PlanScope::All(Read::Cached));
        }
    }

    /// Sends the list of backends to probe to the health runner.
    fn publish_targets(&self) {
        let mut targets = Vec::new();
        for service in &self.desired.config.services {
            let Some(check) = &service.health else { continue };
            let check = Arc::new(check.clone());
            for backend in &service.backends {
                let id = BackendId { service: service.name.clone(), address: backend.address };
                let initial = self.health.get(&id).map_or(Health::Unknown, |(health, _)| *health);
                targets.push(ProbeTarget { id, check: check.clone(), initial });
            }
        }
        self.links.targets.send_replace(targets);
    }

    /// Takes all pending verdicts, and writes them to the maps together.
    fn take_health(&mut self, first: HealthEvent) {
        let begun = Instant::now();
        let mut events = vec![first];
        while let Ok(event) = self.links.health.try_recv() {
            events.push(event);
        }
        events.retain(|event| self.is_probed(&event.id));
        for event in &events {
            self.health.insert(event.id.clone(), (event.health, unix_ns(event.at)));
        }
        if events.is_empty() {
            return;
        }
        let (mut now, mut later) = (BTreeSet::new(), BTreeSet::new());
        for HealthEvent { id: BackendId { service, .. }, from, .. } in &events {
            if now.contains(service) || *from == Health::Unknown && later.contains(service) {
                continue;
            }
            let waits = *from == Health::Unknown && self.may_wait(service);
            if waits { &mut later } else { &mut now }.insert(service.clone());
        }
        self.due.extend(later);
        // While verdicts keep arriving, the `select` in `run` never reaches the tick, so plan here
        // what is due.
        if self.ticked_at.elapsed() > TICK {
            self.ticked_at = Instant::now();
            now.append(&mut self.due);
        }
        if !now.is_empty() {
            self.reconcile(PlanScope::Services(now));
        }
        let took = begun.elapsed();
        for event in events {
            let (up, all) = self.count_up(&event.id.service);
            let took_ms = took.as_secs_f64() * 1000.0;
            let HealthEvent { id, from, health, reason, consecutive, .. } = event;
            let service = &id.service;
            let backend = id.address;
            let (from, health, reason) = (from.name(), health.name(), &*reason);
            if self.writer.sync().last_error.is_some() {
                warn!(%service, %backend, from, to = health, reason, consecutive, up, all, "health changed, but the \
                    maps could not be written");
            } else {
                info!(%service, %backend, from, to = health, reason, consecutive, up, all, took_ms, "health changed");
            }
        }
    }

    /// Whether a first verdict on one of the service's backends may wait for the next tick.
    fn may_wait(&self, service: &ServiceName) -> bool {
        let wanted = self.wanted.position(service).and_then(|at| self.wanted.services.get(at));
        wanted.is_some_and(|wanted| self.warmup.may_wait(wanted, &self.desired, &self.health))
    }

    fn is_probed(&self, id: &BackendId) -> bool {
        self.desired.service(&id.service).is_some_and(|service| service.health.is_some())
            && self.desired.backend(id).is_some()
    }

    /// How many of a service's backends are up, and how many there are.
    fn count_up(&self, service: &ServiceName) -> (usize, usize) {
        let Some(service) = self.desired.service(service) else { return (0, 0) };
        let is_up = |address| {
            let id = BackendId { service: service.name.clone(), address };
            self.health.get(&id).is_some_and(|(health, _)| *health == Health::Up)
        };
        (service.backends.iter().filter(|backend| is_up(backend.address)).count(), service.backends.len())
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Drain(selector, answer) => {
                let change = self.choose(&selector).map(|chosen| overriding::drain(&self.desired, chosen));
                drop(answer.send(change.and_then(|change| self.override_by(change))));
            }
            Command::Undrain(selector, answer) => {
                let change = self.choose(&selector).and_then(|chosen| overriding::undrain(&self.desired, chosen));
                drop(answer.send(change.and_then(|change| self.override_by(change))));
            }
            Command::SetWeight(selector, weight, answer) => {
                let chosen = self.choose(&selector);
                let change = chosen.and_then(|chosen| overriding::set_weight(&self.desired, chosen, weight));
                drop(answer.send(change.and_then(|change| self.override_by(change))));
            }
            Command::Ping(answer) => drop(answer.send(Ok(()))),
            Command::Reload { accept_loss, answer } => {
                let result = self.reload(accept_loss).await;
                drop(answer.send(result.map_err(|errors| failed_reload(&errors))));
            }
        }
    }

    fn choose(&self, selector: &BackendSelector) -> Result<Vec<BackendId>, ApiError> {
        choose(selector, &self.desired, self.writer.programmed())
    }

    /// Applies the overrides. Saves them first, so that a change reported as successful survives a
    /// restart.
    fn override_by(&mut self, change: overriding::Change) -> Result<Applied, ApiError> {
        let overriding::Change { overrides, messages, chosen } = change;
        if overrides != self.desired.overrides {
            self.state_dir.save(&overrides).map_err(|error| ApiError {
                code: ErrorCode::Failed,
                message: format!("nothing was changed: {error}"),
            })?;
            self.desired.overrides = overrides;
            self.reconcile(PlanScope::Services(chosen.iter().map(|id| id.service.clone()).collect()));
            for message in &messages {
                info!("by the CLI: {message}");
            }
        }
        if let Some(error) = &self.writer.sync().last_error {
            let message =
                format!("the change is saved, but the maps could not be written: {error}; the agent tries again");
            return Err(ApiError { code: ErrorCode::Failed, message });
        }
        Ok(Applied { messages, chosen })
    }

    fn forget_overrides(&mut self) {
        if self.desired.holds {
            // A source that has not told its services yet may still declare the backend.
            return;
        }
        let programmed = self.writer.programmed();
        let leaving: BTreeSet<BackendId> = programmed.leaving().map(|one| programmed.id_of(one)).collect();
        let forgotten = self.desired.overrides.forget_gone(&self.desired.config, |id| leaving.contains(id));
        if forgotten.is_empty() {
            return;
        }
        for id in &forgotten {
            info!(backend = %id, "overrides removed: the backend is gone");
        }
        if let Err(error) = self.state_dir.save(&self.desired.overrides) {
            warn!(%error, "cannot save what is set by the CLI");
        }
    }

    /// Reads the file now. Returns what was done, or why the file was refused.
    async fn reload(&mut self, accept_loss: bool) -> Reload {
        match self.file.source.reload().await {
            Ok(loaded) => self.take_config(&loaded, accept_loss),
            Err(stopped) => Err(vec![stopped.to_string()]),
        }
    }

    /// Reloads the file after SIGHUP.
    async fn reload_by_signal(&mut self) {
        if self.starting_until.is_some() {
            // Report nothing to systemd: READY=1, which ends a reload, would also end the start.
            // The result is in the log and the status.
            drop(self.reload(false).await);
            return;
        }
        supervisor::reloading();
        let outcome = self.reload(false).await;
        supervisor::ready(&outcome_of_reload(&outcome));
        self.reloads += 1;
        self.publish();
    }

    /// Applies new content of the file, unless an explicit reload has already judged it.
    fn follow(&mut self, loaded: &Arc<Loaded>) {
        if !self.file.is_judged(loaded) {
            // The result is in the log and the status.
            drop(self.take_config(loaded, false));
        }
    }

    /// Applies the configuration, or changes nothing and returns the reasons.
    fn take_config(&mut self, loaded: &Arc<Loaded>, accept_loss: bool) -> Reload {
        let before = self.file_config.clone();
        let result = match &loaded.result {
            Ok(config) => self.try_config(config, accept_loss),
            Err(error) => Err(error.messages()),
        };
        self.file.note(loaded, &result, !Arc::ptr_eq(&before, &self.file_config));
        self.publish();
        self.links.give_back.send_replace(());
        result
    }

    fn try_config(&mut self, file: &Config, accept_loss: bool) -> Reload {
        let seed = match file.node.hash_seed {
            Some(seed) => seed,
            None => self.state_dir.hash_seed().map_err(|error| vec![error.to_string()])?,
        };
        if *file == *self.file_config && seed == self.desired.seed {
            return Ok("nothing has changed".to_owned());
        }
        // The maps have the sizes with which the agent was started.
        let limits = self.desired.limits;
        let exceeded = Need::of(file).exceeds(&limits);
        if !exceeded.is_empty() {
            return Err(exceeded.iter().map(|one| needs_larger_maps(one, file)).collect());
        }
        let merged = self.merge(file, &Unfit::new());
        let losses = incompatible(&self.desired.config, &self.desired.seed, &merged.config, &seed);
        if !losses.is_empty() && !accept_loss {
            return Err(losses.iter().map(ToString::to_string).collect());
        }
        let Proposal { trial, refusals, misfit } = block_in_place(|| self.propose(file, merged, seed));
        // A configuration that does not fit into the maps is refused like any other mistake.
        if let Some(PlanError { misfits, common }) = misfit {
            let (own, others): (Vec<_>, Vec<_>) = misfits.iter().partition(|(name, _)| file.service(name).is_some());
            let all = own.into_iter().chain(others).map(|(_, misfit)| misfit).chain(&common);
            return Err(all.map(ToString::to_string).collect());
        }
        let mut message = summary(&self.file_config, file);
        let waiting = needs_restart(&self.file_config, file, &limits);
        for what in &waiting {
            warn!("{what} has changed: that takes a restart of the agent, which loses nothing");
        }
        if !waiting.is_empty() {
            message.push_str(&format!(
                "; a restart of the agent, which loses nothing, is needed for: {}",
                waiting.join(", ")
            ));
        }
        self.file_config = Arc::new(file.clone());
        self.file.note_loaded();
        self.note_refusals(refusals);
        self.apply(trial);
        Ok(message)
    }

    /// Applies the services of the sources other than the file. If the result does not fit into the
    /// maps, and refusing services of these sources does not help, the writer reports the error and
    /// tries again.
    fn take_sources(&mut self) {
        self.links.sources.mark_unchanged();
        let (file, seed) = (self.file_config.clone(), self.desired.seed);
        let merged = self.merge(&file, &Unfit::new());
        let Proposal { trial, refusals, .. } = block_in_place(|| self.propose(&file, merged, seed));
        self.note_refusals(refusals);
        self.apply(trial);
    }

    /// Merges this file with the services of the other sources.
    fn merge(&self, file: &Config, unfit: &Unfit) -> Merged {
        merge(file, &self.links.sources.borrow(), unfit, &self.desired.config, &self.desired.limits)
    }

    /// The state that would result from `file`; `merged` is the configuration from this file and
    /// the other sources. A service of another source that does not fit is refused: it stays as it
    /// was, and does not hold up the other services.
    fn propose(&mut self, file: &Config, mut merged: Merged, seed: Seed) -> Proposal {
        let mut unfit = Unfit::new();
        loop {
            let Merged { config, refusals } = merged;
            let trial = self.trial(config, seed);
            let Err(error) = self.fits(&trial) else { return Proposal { trial, refusals, misfit: None } };
            let misfits = error.misfits.iter().map(|(name, misfit)| (name.clone(), misfit.to_string())).collect();
            let refused = without_room(misfits, &error, &trial.desired.config, (file, &self.desired.config), &unfit);
            if refused.is_empty() {
                return Proposal { trial, refusals, misfit: Some(error) };
            }
            unfit.extend(refused);
            merged = self.merge(file, &unfit);
        }
    }

    fn note_refusals(&mut self, refusals: Vec<Refusal>) {
        note_refusals(&self.refusals, &refusals);
        self.refusals = Arc::new(refusals);
    }

    /// The state that would result from `config`, which has the services of all sources.
    fn trial(&mut self, config: Config, seed: Seed) -> Trial {
        let holds = holds(&self.links.sources.borrow());
        let running = &self.desired.config;
        let is_alike = seed == self.desired.seed && holds == self.desired.holds;
        let changed = changed_services(running, &config).filter(|_| is_alike);
        let scope = changed.map_or(PlanScope::All(Read::Maps), PlanScope::Services);
        let mut health = self.health.clone();
        carry_health(running, &config, &mut health);
        let desired = Desired {
            config: Arc::new(config),
            limits: self.desired.limits,
            holds,
            seed,
            overrides: self.desired.overrides.clone(),
            since_ns: boottime_ns(),
            is_traced: self.desired.is_traced,
        };
        let mut wanted = wanted(&desired, &health, &self.links.node.borrow(), &mut self.rings);
        if self.desired.holds {
            let found = self.health_in_the_maps(&wanted, &health);
            if !found.is_empty() {
                health.extend(found);
                wanted = self::wanted(&desired, &health, &self.links.node.borrow(), &mut self.rings);
            }
        }
        Trial { desired, health, wanted, scope }
    }

    /// The health in the maps of backends that `health` lacks. While a source had not told all its
    /// services, these were in the maps without a name.
    fn health_in_the_maps(&self, wanted: &Wanted, health: &HealthOf) -> HealthOf {
        let Ok(image) = self.writer.maps().read() else { return HealthOf::new() };
        let found = recover(wanted, &image, self.writer.maps().slots()).health;
        found.into_iter().filter(|(id, (verdict, _))| *verdict != Health::Unknown && !health.contains_key(id)).collect()
    }

    fn fits(&self, trial: &Trial) -> Result<(), PlanError> {
        self.writer.fits(&trial.wanted, &trial.scope, &self.links.census.borrow().in_use())
    }

    fn apply(&mut self, trial: Trial) {
        let Trial { desired, health, wanted, scope } = trial;
        self.links.examined.send_replace(desired.config.clone());
        self.links.node_wanted.send_if_modified(|wanted| {
            let next = NodeWanted::of(&desired.config.node, &desired.config.services, wanted.attach);
            let differs = *wanted != next;
            *wanted = next;
            differs
        });
        (self.desired, self.health, self.wanted) = (desired, health, wanted);
        self.publish_targets();
        self.write_and_publish(&scope);
        self.forget_overrides();
    }
}

/// The result of merging a new file, or new services of the other sources, before it is applied.
struct Proposal {
    trial: Trial,
    refusals: Vec<Refusal>,
    /// Why the trial does not fit into the maps, even without the refused services.
    misfit: Option<PlanError>,
}

/// The state that would result from another configuration.
struct Trial {
    desired: Desired,
    health: HealthOf,
    wanted: Wanted,
    scope: PlanScope,
}

/// Logs the services that are refused now and were not before.
fn note_refusals(before: &[Refusal], refusals: &[Refusal]) {
    for Refusal { source, service, reason, is_kept } in new_refusals(before, refusals) {
        let served = if *is_kept { "as before" } else { "not at all" };
        warn!(source, %service, reason, served, "the service can't be served as its source says");
    }
}

async fn next(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
