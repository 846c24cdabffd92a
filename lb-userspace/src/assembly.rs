//! Assembles the running agent: opens everything that can fail before anything is changed, then
//! starts the task that owns the maps, and the other tasks.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use lb_common::limits::map;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    agent::{
        AgentOptions,
        core::{Agent, Parts},
        examine, flows,
        handle::AgentHandle,
        node, settle, trace,
    },
    clock::boottime_ns,
    dataplane::{
        data_path::DataPath,
        load::{BpfLog, LoadError},
        maps::Maps,
        migrate::plan::MapSizes,
        stats::Counters,
    },
    doctor::Subject,
    health,
    metrics::Metrics,
    model::{Config, NodeSettings},
    overrides::StateDir,
    serve::{HttpServer, SocketServer},
    source::file::{FileSource, Loaded},
    supervisor,
    view::types::Severity,
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
                "the configuration is refused, nothing was changed:\n  {}\n(`weir config check {}` says the same)",
                messages.join("\n  "),
                options.config.display()
            );
        }
    };
    let mut tasks = Tasks::default();
    let agent = prepare(&options, &config, first, source, &mut tasks, &shutdown).await?;
    let mut agent_task = tokio::spawn(agent.run(hangup, shutdown.clone()));
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
    tasks.0.shutdown().await;
    outcome
}

/// Opens everything that can fail before anything is changed, then starts all tasks except the
/// agent's main task.
async fn prepare(
    options: &AgentOptions,
    config: &Arc<Config>,
    first: Arc<Loaded>,
    source: FileSource,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> anyhow::Result<Agent> {
    let state_dir = StateDir::open(&options.state_dir)?;
    let (overrides, damaged) = state_dir.overrides()?;
    if let Some(damaged) = damaged {
        warn!(error = %damaged, "what was set by the CLI before");
    }
    let seed = match config.node.hash_seed {
        Some(seed) => seed,
        None => state_dir.hash_seed()?,
    };
    let socket = SocketServer::bind(&config.node.admin.socket)?;
    let http = match config.node.admin.http {
        Some(address) => Some(HttpServer::bind(address).await?),
        None => None,
    };
    supervisor::starting("loading the programs, opening the maps");
    let sizes = map_sizes(&config.node);
    let mut data_path = match DataPath::open_sized(&options.pin_dir, options.bpf_log, &sizes) {
        Ok(data_path) => data_path,
        Err(error) => return Err(explained(&error, config, &options.pin_dir).await),
    };
    if options.bpf_log != BpfLog::Off {
        data_path.forward_log();
    }
    let maps = Maps::open(&options.pin_dir)?;
    let counters = Counters::open(&options.pin_dir)?;
    let examination = examine::start(config.clone(), options.pin_dir.clone(), shutdown.clone()).await;

    let (handle, commands) = AgentHandle::new();
    let metrics = Metrics::new();
    let (targets, probed) = watch::channel(Vec::new());
    let (health_events, health) = mpsc::channel(1024);
    let durations = metrics.check_durations();
    let probe_options = health::Options::new(Arc::new(move |id, duration| durations.observe(&id.service, duration)));
    let runner = health::Runner::new(probed, health_events, probe_options);
    let views = runner.views();
    let (node_wanted, node) = node::start(data_path, config, shutdown.clone())?;
    let (census, flow_timeouts) = flows::start(&options.pin_dir, shutdown.clone())?;
    let (settled, settle_scope) = settle::start(&options.pin_dir, shutdown.clone())?;
    let tracer = trace::start(&options.pin_dir, shutdown.clone())?;

    tasks.spawn("health", runner.run(shutdown.clone()));
    tasks.spawn_fallible("socket", socket.serve(handle.clone(), shutdown.clone()));
    if let Some(http) = http {
        let encode = metrics.clone();
        tasks.spawn_fallible("http", http.serve(handle, move |snapshot| encode.encode(snapshot), shutdown.clone()));
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %options.config.display(),
        pins = %options.pin_dir.display(),
        socket = %config.node.admin.socket.display(),
        http = config.node.admin.http.map_or_else(|| "off".to_owned(), |address| address.to_string()),
        services = config.services.len(),
        backends = config.services.iter().map(|service| service.backends.len()).sum::<usize>(),
        "the agent starts"
    );
    let parts = Parts {
        options: options.clone(),
        config: config.clone(),
        first,
        seed,
        overrides,
        state_dir,
        source,
        commands,
        health,
        views,
        targets,
        node,
        node_wanted,
        census,
        flow_timeouts,
        settled,
        settle_scope,
        maps,
        counters,
        metrics,
        examination,
        tracer,
        now_ns: boottime_ns(),
    };
    Ok(Agent::new(parts))
}

/// The sizes of the maps whose size comes from the configuration instead of the build.
fn map_sizes(node: &NodeSettings) -> MapSizes {
    let tables = &node.flow_tables;
    let of_flows = [
        (map::ESTABLISHED_V4, tables.established),
        (map::ESTABLISHED_V6, tables.established),
        (map::HALF_OPEN_V4, tables.half_open),
        (map::HALF_OPEN_V6, tables.half_open),
        (map::SEEN_V4, tables.seen),
        (map::SEEN_V6, tables.seen),
    ];
    of_flows.into_iter().chain(node.limits.map_sizes()).collect()
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

/// All tasks except the agent's main task. If one of them ends before the shutdown, the agent
/// stops.
#[derive(Default)]
struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    fn spawn_fallible<E: Into<anyhow::Error> + Send + 'static>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, task.await.map_err(Into::into)) });
    }

    async fn first_failure(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name} has ended by itself"),
            Some(Ok((name, Err(error)))) => error.context(format!("the task {name} has failed")),
            Some(Err(error)) => anyhow::Error::new(error).context("a task of the agent has failed"),
            None => std::future::pending().await,
        }
    }
}
