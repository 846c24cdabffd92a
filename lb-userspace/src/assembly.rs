//! Assembles the running agent: opens everything that can fail before anything is changed, then
//! starts the task that owns the maps, and the other tasks.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    agent::{
        AgentOptions, audit,
        desired::RingCache,
        examine,
        flows::{self, Flows},
        handle::AgentHandle,
        heap, keep,
        node::{self, NodeWanted},
        owner::{Links, Owner, Start},
        read::{Reader, Sources},
        reload::File,
        report, settle, trace,
        writer::Writer,
    },
    dataplane::{
        data_path::DataPath,
        load::{BpfLog, LoadError},
        maps::Maps,
        sizes::{MapSizes, pinned_in_use},
    },
    doctor::Subject,
    health::{self, HealthEvent, HealthViews, ProbeTarget},
    metrics::Metrics,
    model::{Admin, Config, FlowTablesInUse, seed::Seed},
    overrides::{Overrides, StateDir},
    serve::{HttpServer, SocketServer},
    source::{
        Board,
        file::{FileSource, Loaded},
    },
    supervisor,
    view::types::{Severity, Snapshot},
};

/// Runs until SIGTERM or SIGINT; the data path keeps running. If the configuration file is bad,
/// fails with all of its mistakes, and leaves a pinned data path as it is.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    let outcome = serve(options).await;
    outcome.inspect_err(supervisor::failed)
}

async fn serve(options: AgentOptions) -> anyhow::Result<()> {
    supervisor::starting("reading the configuration");
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let shutdown = CancellationToken::new();
    // Whichever way this function is left, the tasks that it has started end.
    let _stop = shutdown.clone().drop_guard();
    let (source, _follower) = FileSource::start(&options.config, shutdown.clone()).await;
    let loaded = source.loaded();
    let first = loaded.borrow().clone();
    let config = match &first.result {
        Ok(config) => Arc::new(config.clone()),
        Err(error) => {
            let messages = error.messages();
            anyhow::bail!(
                "the configuration is refused, nothing was changed:\n  {}\n(`weir config check {}` reports the same \
                mistakes)",
                messages.join("\n  "),
                options.config.display()
            );
        }
    };
    let mut tasks = Tasks::default();
    let owner = prepare(&options, &config, first, source, &mut tasks, &shutdown).await?;
    let mut agent_task = tokio::spawn(owner.run(hangup, shutdown.clone()));
    let outcome = tokio::select! {
        biased;
        _ = terminate.recv() => { info!(signal = "SIGTERM", "stopping; the data path goes on"); Ok(()) }
        _ = interrupt.recv() => { info!(signal = "SIGINT", "stopping; the data path goes on"); Ok(()) }
        ended = &mut agent_task => Err(match ended {
            Ok(()) => anyhow::anyhow!("the agent's task has ended by itself"),
            Err(error) => anyhow::Error::new(error).context("the agent's task has failed"),
        }),
        failed = tasks.first_failure() => Err(failed),
    };
    supervisor::stopping();
    shutdown.cancel();
    if outcome.is_ok()
        && let Err(error) = agent_task.await
    {
        error!(%error, "the agent's task has failed while it stopped");
    }
    tasks.stop().await;
    outcome
}

/// Opens everything that can fail before anything is changed, then starts all tasks except that of
/// the owner of the maps.
async fn prepare(
    options: &AgentOptions,
    config: &Arc<Config>,
    first: Arc<Loaded>,
    source: FileSource,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> anyhow::Result<Owner> {
    let (state_dir, seed, overrides) = open_state(&options.state_dir, config)?;
    let board = sources(&state_dir)?;
    let servers = Servers::bind(&config.node.admin).await?;
    supervisor::starting("loading the programs, opening the maps");
    // Build the rings meanwhile, because the verifier takes its time.
    let rings = {
        let (config, overrides) = (config.clone(), overrides.clone());
        spawn_blocking(move || RingCache::of(config, seed, overrides))
    };
    let data_path = open_data_path(options, config, &board).await?;
    let pin_dir = &options.pin_dir;
    let maps = Maps::open(pin_dir)?;
    let examination = examine::start(config.clone(), pin_dir.clone(), shutdown.clone()).await;
    let metrics = Metrics::new();
    let (targets, health, views) = start_probes(&metrics, tasks, shutdown);
    let (node_wanted, node) = node::start(data_path, node_wanted(config, &board), shutdown.clone())?;
    let Flows { census, passes, looked_at } = flows::start(pin_dir, shutdown.clone())?;
    let slots = maps.shared_slots();
    let (settled, settle_scope) = settle::start(pin_dir, slots.clone(), shutdown.clone())?;
    let tracer = trace::start(pin_dir, shutdown.clone())?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %options.config.display(),
        pins = %pin_dir.display(),
        socket = %config.node.admin.socket.display(),
        http = config.node.admin.http.map_or_else(|| "off".to_owned(), |address| address.to_string()),
        services = config.services.len(),
        backends = config.services.iter().map(|service| service.backends.len()).sum::<usize>(),
        "the agent starts"
    );
    let (command, commands) = mpsc::channel(COMMANDS);
    let (audit, audited) = watch::channel(0);
    let links = Links {
        commands,
        health,
        sources: board.heard(),
        targets,
        node: node.clone(),
        node_wanted,
        census: census.clone(),
        flow_passes: passes,
        settle_scope,
        audited,
        give_back: heap::start(shutdown.clone()),
        examined: examination.config,
        is_traced: tracer.is_wanted.clone(),
        trace_names: tracer.names.clone(),
    };
    let writer = Writer::new(maps, metrics.sync_durations(), metrics.map_update_errors());
    let file = File::new(source, &options.config, first);
    let rings = rings.await.context("the rings cannot be built")?;
    let start = Start { config: config.clone(), seed, overrides, state_dir: state_dir.clone(), file, writer, rings };
    let (owner, published) = Owner::new(start, links);
    tasks.spawn_last(keep::run(state_dir, published.clone(), shutdown.clone()));
    audit::start(pin_dir, published.clone(), audit, shutdown.clone())?;
    let findings = examination.findings;
    let sources =
        Sources { published: published.clone(), node, census, settled, findings, health: views, looked_at, tracer };
    let reader = Reader::open(pin_dir, slots, sources)?;
    tasks.spawn("report", report::run(reader.clone(), published, shutdown.clone()));
    servers.start(AgentHandle::new(command, reader), metrics, tasks, shutdown);
    Ok(owner)
}

/// The names of the sources other than the file. Each publishes on the board.
const SOURCES: [&str; 0] = [];

/// The board of the sources other than the file, with their services that were saved before this
/// start.
fn sources(state_dir: &StateDir) -> anyhow::Result<Board> {
    let mut remembered = Vec::new();
    for source in SOURCES {
        let (services, damaged) = state_dir.served(source)?;
        if let Some(damaged) = damaged {
            warn!(source, error = %damaged, "the saved services of a source are damaged, and not used");
        }
        remembered.push((source, services));
    }
    Ok(Board::new(remembered))
}

/// Maximum number of commands that wait for the owner of the maps.
const COMMANDS: usize = 64;

/// What the node's task must provide for the services of the file and of the other sources.
fn node_wanted(config: &Config, board: &Board) -> NodeWanted {
    let heard = board.heard();
    let heard = heard.borrow();
    let said = heard.values().flat_map(|said| said.services.iter());
    NodeWanted::of(&config.node, config.services.iter().chain(said), false)
}

/// The state directory, with the seed and the overrides. The seed of the configuration, if any,
/// takes precedence.
fn open_state(dir: &Path, config: &Config) -> anyhow::Result<(StateDir, Seed, Overrides)> {
    let state_dir = StateDir::open(dir)?;
    let (overrides, damaged) = state_dir.overrides()?;
    if let Some(damaged) = damaged {
        warn!(error = %damaged, "the saved overrides are damaged, and not used");
    }
    let seed = match config.node.hash_seed {
        Some(seed) => seed,
        None => state_dir.hash_seed()?,
    };
    Ok((state_dir, seed, overrides))
}

/// Sizes the flow tables for the modes of all known services: the file's, the other sources', and
/// those in the pinned maps.
async fn open_data_path(options: &AgentOptions, config: &Config, board: &Board) -> anyhow::Result<DataPath> {
    let heard = board.heard();
    let in_use = FlowTablesInUse::of(config.services.iter())
        | FlowTablesInUse::of(heard.borrow().values().flat_map(|said| said.services.iter()))
        | pinned_in_use(&options.pin_dir);
    let sizes = MapSizes::of(&config.node, in_use);
    let mut data_path = match DataPath::open_sized(&options.pin_dir, options.bpf_log, &sizes) {
        Ok(data_path) => data_path,
        Err(error) => return Err(explained(&error, config, &options.pin_dir).await),
    };
    if options.bpf_log != BpfLog::Off {
        data_path.forward_log();
    }
    Ok(data_path)
}

/// Starts the probes. Returns the sender of their targets, the receiver of their events, and the
/// health views.
fn start_probes(
    metrics: &Metrics,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> (watch::Sender<Vec<ProbeTarget>>, mpsc::Receiver<HealthEvent>, HealthViews) {
    let (targets, probed) = watch::channel(Vec::new());
    let (events, health) = mpsc::channel(1024);
    let durations = metrics.check_durations();
    let options = health::Options::new(Arc::new(move |service| durations.of_service(service)));
    let runner = health::Runner::new(probed, events, options);
    let views = runner.views();
    tasks.spawn("health", runner.run(shutdown.clone()));
    (targets, health, views)
}

/// The servers of the agent, bound before anything is changed.
struct Servers {
    socket: SocketServer,
    http: Option<HttpServer>,
}

impl Servers {
    async fn bind(admin: &Admin) -> anyhow::Result<Self> {
        let socket = SocketServer::bind(&admin.socket)?;
        let http = match admin.http {
            Some(address) => Some(HttpServer::bind(address).await?),
            None => None,
        };
        Ok(Self { socket, http })
    }

    fn start(self, agent: AgentHandle, metrics: Metrics, tasks: &mut Tasks, shutdown: &CancellationToken) {
        tasks.spawn_fallible("socket", self.socket.serve(agent.clone(), shutdown.clone()));
        if let Some(http) = self.http {
            let encode = move |snapshot: &Snapshot| metrics.encode(snapshot);
            tasks.spawn_fallible("http", http.serve(agent, encode, shutdown.clone()));
        }
    }
}

/// The error, followed by the problems found on the machine, which may be its cause: a missing
/// capability shows up only as "not permitted".
async fn explained(error: &LoadError, config: &Config, pin_dir: &Path) -> anyhow::Error {
    let mut text = error.to_string();
    for finding in crate::doctor::findings(Some(config), pin_dir, &Subject::Process).await {
        if finding.severity == Severity::Error {
            text.push_str(&format!("\n  {}: {}; {}", finding.check, finding.message, finding.remedy));
        }
    }
    anyhow::anyhow!(text)
}

/// All tasks except that of the owner of the maps.
#[derive(Default)]
struct Tasks {
    /// If one of these tasks ends before the shutdown, the agent stops.
    all: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Tasks that, when the agent stops, finish their last work and then end by themselves.
    last: JoinSet<()>,
}

/// How long the last work of a stopping agent may take.
const LAST_WORK: Duration = Duration::from_secs(5);

impl Tasks {
    fn spawn_last(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.last.spawn(task);
    }

    async fn stop(mut self) {
        self.all.shutdown().await;
        if timeout(LAST_WORK, self.last.join_all()).await.is_err() {
            warn!("the last work of the agent did not end within {LAST_WORK:?}");
        }
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.all.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    fn spawn_fallible<E: Into<anyhow::Error> + Send + 'static>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.all.spawn(async move { (name, task.await.map_err(Into::into)) });
    }

    async fn first_failure(&mut self) -> anyhow::Error {
        match self.all.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name} has ended by itself"),
            Some(Ok((name, Err(error)))) => error.context(format!("the task {name} has failed")),
            Some(Err(error)) => anyhow::Error::new(error).context("a task of the agent has failed"),
            None => std::future::pending().await,
        }
    }
}
