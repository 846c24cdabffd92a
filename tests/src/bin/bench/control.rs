//! `bench control`: what the agent itself costs, and how fast it follows, with thousands of
//! backends. Judges nothing: a target that is missed is said and does not fail the bench.

mod changes;
mod figures;
mod readers;
mod scene;
mod size;
mod usage;
mod watch;

use std::{thread, time::Duration};

use anyhow::Result;
use clap::Args;
use weir_tests::{
    agent::{self, Agent},
    config::AgentConfig,
    http::Api,
};

use self::{
    changes::PATIENCE,
    figures::{MEDIAN, MOST, P99, Report},
    readers::Readers,
    scene::Scene,
    size::{Mode, Size},
    usage::{Usage, anonymous},
    watch::Watch,
};

#[derive(Args)]
pub struct Arguments {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// How many services.
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// How many backends each of them has, half of them IPv4 and half IPv6.
    #[arg(long, default_value_t = 16)]
    backends: u32,
    /// Slots of each ring, a prime. Default: 4093, or 2089 with `--default-limits`.
    #[arg(long)]
    ring: Option<u32>,
    /// The mode of the services.
    #[arg(long, value_enum, default_value_t = Mode::Mixed)]
    mode: Mode,
    /// Don't write `limits` into the configuration: the agent's own must hold the size.
    #[arg(long)]
    default_limits: bool,
    /// Leave out what takes probes.
    #[arg(long, conflicts_with = "probes_only")]
    no_probes: bool,
    /// Leave out what is measured without probes.
    #[arg(long)]
    probes_only: bool,
    /// How many changes of one backend.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..))]
    changes: u32,
    /// For how long processor time is measured, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Every how many milliseconds each backend is probed.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..))]
    interval: u32,
    /// How many backends change their health at a time.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    flips: u32,
}

/// The small installation: services, and backends of each.
const SMALL: (u32, u32) = (100, 10);
/// Rewrites of the file, each of them a reload.
const RELOADS: u32 = 5;
/// How long an agent that has just become ready is left alone.
const CALM: Duration = Duration::from_secs(10);

/// Targets, each with its unit in the name.
const CHANGE_P99_MS: f64 = 20.0;
const BURST_MS: f64 = 1000.0;
const AT_REST_PERCENT: f64 = 1.0;
const PROBES_PERCENT: f64 = 35.0;
const PROBE_USER_US: f64 = 10.0;
const MEMORY_MIB: f64 = 100.0;
const SMALL_MEMORY_MIB: f64 = 30.0;
const START_MS: f64 = 1500.0;
const FLIP_MS: f64 = 50.0;

pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { services, backends, ring, mode, default_limits, .. } = *arguments;
    let limits = !default_limits;
    let size = Size::new(services, backends, ring, mode, limits)?;
    let small = Size::new(services.min(SMALL.0), backends.min(SMALL.1), ring, mode, limits)?;
    let mut report = Report::new(size, &agent::weir_binary()?)?;
    eprintln!("{}", report.heading());

    let scene = Scene::new()?;
    if !arguments.probes_only {
        memory_of_small(&scene, &small, &mut report)?;
        without_probes(arguments, &scene, &size, &mut report)?;
    }
    if !arguments.no_probes {
        with_probes(arguments, &scene, &size, &mut report)?;
    }

    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}\n\n{}", report.heading(), report.table());
    }
    Ok(())
}

fn memory_of_small(scene: &Scene, size: &Size, report: &mut Report) -> Result<()> {
    let config = size.config(&scene.bed, None);
    let mut agent = scene.agent(&config)?;
    scene.start(&mut agent)?;
    thread::sleep(CALM);
    let what = format!("{} x {}: anonymous memory", size.services, size.backends);
    let started = anonymous(agent.pid()?)?;
    report.add("memory_small_started", &format!("{what} after the start"), started, "MiB", Some(SMALL_MEMORY_MIB));
    changes::by_file(size, &config, &agent, &Watch::new(&agent.pin_dir)?, RELOADS)?;
    thread::sleep(CALM);
    let reloaded = anonymous(agent.pid()?)?;
    let what = format!("{what} after {RELOADS} reloads");
    report.add("memory_small_reloaded", &what, reloaded, "MiB", Some(SMALL_MEMORY_MIB));
    remove(agent)
}

fn without_probes(arguments: &Arguments, scene: &Scene, size: &Size, report: &mut Report) -> Result<()> {
    let config = size.config(&scene.bed, None);
    let mut agent = scene.agent(&config)?;
    let ready = scene.start(&mut agent)?;
    report.add("start", "start to ready", millis(ready), "ms", Some(START_MS));
    let pid = agent.pid()?;
    let spent = Usage::of(pid)?.processor();
    report.add("start_processor", "processor time until ready", millis(spent), "ms", None);
    thread::sleep(CALM);
    report.add("memory_started", "anonymous memory after the start", anonymous(pid)?, "MiB", Some(MEMORY_MIB));

    let rest = Usage::during(pid, Duration::from_secs(arguments.seconds.into()))?;
    report.add("rest", "processor time at rest, of one core", rest.all_percent(), "%", Some(AT_REST_PERCENT));
    report.add("rest_wake_ups", "wake-ups a second at rest", rest.wake_ups_a_second(), "/s", None);

    let watch = Watch::new(&agent.pin_dir)?;
    let times = changes::one_by_one(size, &mut Api::connect(&agent.socket, PATIENCE)?, &watch, arguments.changes)?;
    let ranks = [(MEDIAN, None), (P99, Some(CHANGE_P99_MS)), (MOST, None)];
    report.add_times("change", "change of one backend to the last slot", &times.seen, &ranks);
    let what = "change of one backend to the answer";
    report.add_times("change_answer", what, &times.answered, &[(MEDIAN, None), (MOST, None)]);

    let times = changes::by_file(size, &config, &agent, &watch, RELOADS)?;
    let what = format!("file with {} changes to the last slot", size.services);
    report.add_times("burst", &what, &times, &[(MEDIAN, None), (MOST, Some(BURST_MS))]);
    thread::sleep(CALM);
    let what = format!("anonymous memory after {RELOADS} reloads");
    report.add("memory_reloaded", &what, anonymous(pid)?, "MiB", Some(MEMORY_MIB));

    agent.kill()?;
    let again = scene.start(&mut agent)?;
    report.add("start_again", "start to ready over its own maps", millis(again), "ms", Some(START_MS));
    remove(agent)
}

fn with_probes(arguments: &Arguments, scene: &Scene, size: &Size, report: &mut Report) -> Result<()> {
    let health = size::probes(Duration::from_millis(arguments.interval.into()));
    let config: AgentConfig = size.config(&scene.bed, Some(health));
    let mut agent = scene.agent(&config)?;
    let ready = scene.start(&mut agent)?;
    report.add("probed_start", "probed: start to ready, with a verdict on every backend", millis(ready), "ms", None);
    scene.wait_all_up(&agent, size.all_backends())?;
    thread::sleep(CALM);

    let pid = agent.pid()?;
    let before = scene.probes()?;
    let used = Usage::during(pid, Duration::from_secs(arguments.seconds.into()))?;
    let probes = scene.probes()? - before;
    let rate = probes as f64 / used.time.as_secs_f64();
    report.add("probes_rate", "probed: probes a second", rate, "/s", None);
    report.add("probes", "probed: processor time, of one core", used.all_percent(), "%", Some(PROBES_PERCENT));
    report.add("probes_user", "probed: of it user", used.percent(used.user), "%", None);
    report.add("probes_system", "probed: of it system", used.percent(used.system), "%", None);
    let each = used.user.as_secs_f64() * 1e6 / probes.max(1) as f64;
    report.add("probe_user", "probed: user time of a probe", each, "µs", Some(PROBE_USER_US));
    report.add("memory_probed", "probed: anonymous memory", anonymous(pid)?, "MiB", None);

    let watch = Watch::new(&agent.pin_dir)?;
    let times = changes::by_verdicts(size, scene, &watch, health, arguments.flips, 1)?;
    report.add_times("flip", "probed: verdict to the last slot", &times, &[(MEDIAN, None), (MOST, None)]);

    let readers = Readers::start(&scene.bed.lb, config.http, &agent.socket)?;
    let times = changes::by_verdicts(size, scene, &watch, health, arguments.flips, 2)?;
    let answers = readers.stop()?;
    let what = format!("probed, {answers} meanwhile: verdict to the last slot");
    report.add_times("flip_read", &what, &times, &[(MEDIAN, None), (MOST, Some(FLIP_MS))]);

    let readers = Readers::start(&scene.bed.lb, config.http, &agent.socket)?;
    let mut api = Api::connect(&agent.socket, PATIENCE)?;
    let times = changes::one_by_one(size, &mut api, &watch, arguments.changes.min(40))?;
    let answers = readers.stop()?;
    let what = format!("probed, {answers} meanwhile: drain to the last slot");
    report.add_times("change_read", &what, &times.seen, &[(MEDIAN, None), (MOST, Some(FLIP_MS))]);
    remove(agent)
}

/// Kills the agent first: how it ends is not measured, and a busy one may take its time.
fn remove(mut agent: Agent) -> Result<()> {
    agent.kill()?;
    agent.cleanup()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
