//! The agent under test, in the balancer's namespace, and its CLI.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lb_userspace::{
    api::types::{BackendView, FlowView, ServiceView, Status},
    state::Health,
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
    state_dir: PathBuf,
    http: SocketAddr,
    lb: Netns,
    running: Option<Running>,
    kept: bool,
}

/// How long the agent may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

impl Agent {
    /// Writes the configuration, starts the agent and waits until it is ready.
    pub fn start(bed: &Bed, config: &AgentConfig) -> Result<Self> {
        let dir = bed.dir();
        let mut agent = Self {
            config_file: dir.join("weir.yaml"),
            socket: config.socket.clone(),
            // In the file system and not its root: `weir cleanup` removes the directory.
            pin_dir: dir.join("bpf/weir"),
            log: dir.join("agent.log"),
            state_dir: dir.join("state"),
            http: config.http,
            lb: bed.lb.clone(),
            running: None,
            kept: false,
        };
        agent.configure(config)?;
        agent.start_again()?;
        Ok(agent)
    }

    /// Writes the configuration; a running agent sees it by itself.
    pub fn configure(&self, config: &AgentConfig) -> Result<()> {
        config::write(&self.config_file, &config.to_string())
    }

    /// Starts it after [`Agent::kill`] or [`Agent::stop`] and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        let binary = weir_binary()?;
        let mut command = self.lb.command(&binary);
        command.args(["agent", "--config"]).arg(&self.config_file);
        command.arg("--state-dir").arg(&self.state_dir).arg("--pin-dir").arg(&self.pin_dir);
        self.running = Some(Running::start("weir agent", &self.log, &mut command)?);
        self.wait_ready()
    }

    /// Waits until /readyz says 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let Self { running, lb, http: address, .. } = self;
        let Some(running) = running else { bail!("the agent was not started") };
        let ready = wait_for("the agent is ready", PATIENCE, || {
            if let Some(status) = running.ended()? {
                return Ok(!status.success());
            }
            Ok(http::get(lb, *address, "/readyz", Duration::from_secs(1))?.status == 200)
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
        Ok(http::get(&self.lb, self.http, "/metrics", Duration::from_secs(5))?.body)
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
        let mut cleanup = self.lb.command(weir_binary()?);
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

/// `WEIR_BIN`, or target/debug/weir.
pub fn weir_binary() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/weir");
    let binary = std::env::var_os("WEIR_BIN").map_or_else(built, PathBuf::from);
    if !binary.exists() {
        bail!("{} doesn't exist: build it with `cargo xtask build`, or run `cargo xtask test e2e`", binary.display());
    }
    Ok(binary)
}
