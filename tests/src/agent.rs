//! The agent under test, in the balancer's namespace, and its CLI.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lb_userspace::{
    state::Health,
    view::types::{BackendView, FlowView, ServiceView, Status},
};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::{
    bed::Bed,
    config::{self, AgentConfig},
    http,
    netns::Netns,
    process::{self, Running, check, wait_for},
};

/// Started by [`Agent::start`]; stopped, and its data path removed, when dropped.
pub struct Agent {
    pub config_file: PathBuf,
    pub socket: PathBuf,
    pub pin_dir: PathBuf,
    pub log: PathBuf,
    /// What runs when it is started the next time.
    pub binary: PathBuf,
    /// What root may do there from its next start on, as `setpriv --bounding-set` has it:
    /// [`unit_capabilities`].
    pub capabilities: String,
    /// Variables of its environment, from its next start on.
    pub environment: Vec<(OsString, OsString)>,
    state_dir: PathBuf,
    http: SocketAddr,
    netns: Netns,
    running: Option<Running>,
    kept: bool,
}

/// How long the agent may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

impl Agent {
    /// Writes the configuration, starts the agent on the balancer and waits until it is ready.
    pub fn start(bed: &Bed, config: &AgentConfig) -> Result<Self> {
        Self::prepare(bed, config)?.started()
    }

    /// Writes the configuration of an agent on the balancer, and starts nothing yet.
    pub fn prepare(bed: &Bed, config: &AgentConfig) -> Result<Self> {
        // In the file system and not its root: `weir cleanup` removes the directory.
        Self::new(&bed.lb, bed.dir(), bed.dir().join("bpf/weir"), config)
    }

    /// The same on another machine of the bed. `name`, which is also that of its directories, is
    /// its own.
    pub fn start_beside(bed: &Bed, netns: &Netns, name: &str, config: &AgentConfig) -> Result<Self> {
        let mut agent = Self::launch_beside(bed, netns, name, config)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// The same, but without waiting until the agent is ready.
    pub fn launch_beside(bed: &Bed, netns: &Netns, name: &str, config: &AgentConfig) -> Result<Self> {
        let dir = bed.dir().join(name).join("agent");
        fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let mut agent = Self::new(netns, dir, bed.dir().join("bpf").join(name), config)?;
        agent.launch()?;
        Ok(agent)
    }

    fn new(netns: &Netns, dir: PathBuf, pin_dir: PathBuf, config: &AgentConfig) -> Result<Self> {
        let agent = Self {
            config_file: dir.join("weir.yaml"),
            socket: config.socket.clone(),
            pin_dir,
            log: dir.join("agent.log"),
            binary: weir_binary()?,
            capabilities: unit_capabilities()?,
            environment: Vec::new(),
            state_dir: dir.join("state"),
            http: config.http,
            netns: netns.clone(),
            running: None,
            kept: false,
        };
        agent.configure(config)?;
        Ok(agent)
    }

    fn started(mut self) -> Result<Self> {
        self.start_again()?;
        Ok(self)
    }

    /// Writes the configuration; a running agent sees it by itself.
    pub fn configure(&self, config: &AgentConfig) -> Result<()> {
        config::write(&self.config_file, &config.to_string())
    }

    /// Starts it after [`Agent::kill`] or [`Agent::stop`] and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts it and waits for nothing.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.confined(&self.binary);
        command.args(["agent", "--config"]).arg(&self.config_file);
        command.arg("--state-dir").arg(&self.state_dir).arg("--pin-dir").arg(&self.pin_dir);
        command.envs(self.environment.iter().cloned());
        self.running = Some(Running::start("weir agent", &self.log, &mut command)?);
        Ok(())
    }

    /// A program in the balancer's namespace with the capabilities of the agent.
    fn confined(&self, program: &Path) -> Command {
        let mut command = self.netns.command("setpriv");
        command.arg(format!("--bounding-set={}", self.capabilities)).arg("--").arg(program);
        command
    }

    /// Starts it, and waits until it ends because it can't start; what it said.
    pub fn start_refused(&mut self) -> Result<String> {
        let begin = fs::metadata(&self.log).map_or(0, |log| log.len() as usize);
        self.launch()?;
        let running = self.running.as_mut().context("the agent was not started")?;
        wait_for("the agent ends", PATIENCE, || Ok(running.ended()?.is_some()))?;
        if let Some(running) = self.running.take().as_mut()
            && running.ended()?.is_some_and(|status| status.success())
        {
            bail!("the agent ended without an error; its log:\n{}", running.log_tail());
        }
        let log = fs::read_to_string(&self.log).context("can't read the agent's log")?;
        Ok(log.get(begin..).context("the agent's log has become shorter")?.to_owned())
    }

    /// Waits until /readyz says 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let Self { running, netns, http: address, .. } = self;
        let Some(running) = running else { bail!("the agent was not started") };
        let ready = wait_for("the agent is ready", PATIENCE, || {
            if let Some(status) = running.ended()? {
                return Ok(!status.success());
            }
            Ok(http::get(netns, *address, "/readyz", Duration::from_secs(1))?.status == 200)
        });
        if ready.is_ok() && running.ended()?.is_none() {
            return Ok(());
        }
        let state = match running.ended()? {
            Some(status) => format!("the agent ended ({status})"),
            None => ready.err().map(|error| format!("{error:#}")).unwrap_or_default(),
        };
        bail!("{state}; its log:\n{}", running.log_tail())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.kill())
    }

    /// SIGTERM; the data path stays.
    pub fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.stop(PATIENCE))
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("the agent is not running")?.pid())
    }

    /// SIGHUP: reads the configuration again.
    pub fn reload(&self) -> Result<()> {
        self.running.as_ref().context("the agent is not running")?.signal(Signal::SIGHUP)
    }

    /// The CLI, to be run.
    pub fn weir(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(weir_binary()?);
        command.arg("--socket").arg(&self.socket).args(arguments);
        Ok(command)
    }

    /// Runs the CLI, which must succeed; what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        check(&mut self.weir(arguments)?)
    }

    /// Runs the CLI, however it ends.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<Output> {
        process::output(&mut self.weir(arguments)?)
    }

    pub fn status(&self) -> Result<Status> {
        // 1 and 2 say degraded and down, and print the status all the same.
        let output = self.try_cli(&["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            format!("`weir status -o json` printed {out:?} and {err:?}")
        })
    }

    pub fn backends(&self) -> Result<Vec<BackendView>> {
        self.json(&["get", "backends"])
    }

    pub fn services(&self) -> Result<Vec<ServiceView>> {
        self.json(&["get", "services"])
    }

    pub fn flows(&self) -> Result<Vec<FlowView>> {
        self.json(&["get", "flows"])
    }

    fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.cli(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("`weir {}` printed {text:?}", arguments.join(" ")))
    }

    /// The backend with this address in service `web`.
    pub fn backend(&self, address: SocketAddr) -> Result<BackendView> {
        let backends = self.backends()?;
        let found = backends.into_iter().find(|backend| backend.service == "web" && backend.address == address);
        found.with_context(|| format!("`weir get backends` doesn't show web/{address}"))
    }

    /// Waits until the probes see it so; how long that took.
    pub fn wait_health(&self, address: SocketAddr, health: Health, patience: Duration) -> Result<Duration> {
        let what = format!("web/{address} is {}", health.name());
        wait_for(&what, patience, || Ok(self.backend(address)?.health == health))
    }

    /// Waits until every backend of `web` that has probes is up.
    pub fn wait_all_up(&self) -> Result<()> {
        wait_for("every backend of web is up", PATIENCE, || {
            let backends = self.backends()?;
            let mut web = backends.iter().filter(|backend| backend.service == "web").peekable();
            Ok(web.peek().is_some() && web.all(|backend| backend.health == Health::Up && backend.eligible))
        })
        .map(drop)
    }

    /// The text of /metrics.
    pub fn metrics(&self) -> Result<String> {
        Ok(http::get(&self.netns, self.http, "/metrics", Duration::from_secs(5))?.body)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.running.as_ref().map(Running::log_tail).unwrap_or_default()
    }

    /// Leaves agent and data path when this value goes.
    pub fn keep(mut self) {
        self.kept = true;
        if let Some(running) = self.running.take() {
            std::mem::forget(running);
        }
    }

    /// Ends the agent and removes its data path by `weir cleanup`.
    pub fn cleanup(&mut self) -> Result<()> {
        let stopped = self.stop();
        let mut cleanup = self.confined(&weir_binary()?);
        cleanup.arg("--socket").arg(&self.socket).args(["cleanup", "--pin-dir"]).arg(&self.pin_dir);
        check(&mut cleanup).and(stopped.map(|()| String::new())).map(drop)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the agent's log ({}):\n{}", self.log.display(), self.log_tail());
        }
        if let Err(error) = self.cleanup() {
            eprintln!("warning: {error:#}");
        }
    }
}

/// The capabilities that the shipped unit grants, as `setpriv --bounding-set` wants them: the agent
/// of every test has no others, so that one which it needs and the unit lacks fails the tests.
pub fn unit_capabilities() -> Result<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/weir.service");
    let text = fs::read_to_string(&unit).with_context(|| format!("can't read {}", unit.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let line = line.with_context(|| format!("{} has no CapabilityBoundingSet=", unit.display()))?;
    let granted = line.split_whitespace().map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    Ok(granted.fold("-all".to_owned(), |all, one| all + &one))
}

/// `WEIR_BIN`, or target/debug/weir.
pub fn weir_binary() -> Result<PathBuf> {
    binary("WEIR_BIN", "weir")
}

/// `WEIR_OTHER_BIN`, or target/debug/weir-other-layout: the same with the other layout of its maps.
pub fn other_binary() -> Result<PathBuf> {
    binary("WEIR_OTHER_BIN", "weir-other-layout")
}

fn binary(variable: &str, name: &str) -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug").join(name);
    let binary = std::env::var_os(variable).map_or_else(built, PathBuf::from);
    if !binary.exists() {
        bail!("{} doesn't exist: `cargo xtask test e2e` builds it", binary.display());
    }
    Ok(binary)
}
