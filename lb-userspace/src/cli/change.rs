//! Commands that change something. Each prints what it did.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    client::{Client, Failure},
    output::{self, Format, View, interval},
    process,
    wait::{self, Goal},
};
use crate::view::types::{Changed, ErrorCode};

const SELECTOR: &str = "SERVICE/ADDRESS:PORT, ADDRESS:PORT or ADDRESS; all that fit are meant";

#[derive(Args, Debug)]
struct Waiting {
    /// Wait until the change has taken effect
    #[arg(long)]
    wait: bool,
    /// Wait for at most this time, then exit with 1
    #[arg(long, env = "WEIR_TIMEOUT", value_name = "DURATION", value_parser = interval)]
    timeout: Option<Duration>,
}

/// Drain a backend: it gets no new connections, and its old ones continue
///
/// The drain persists across reloads and restarts until `weir undrain`. With --wait, the command
/// returns when the backend has no connections left; in DSR modes, where Weir does not count
/// connections, when the drain ends. If the drain ends or --timeout passes before that, it says
/// what is left and exits with 1.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir drain web/10.2.0.11:8080
  weir drain 10.2.0.11 --wait                   in all its services, before a reboot
  weir undrain 10.2.0.11                        and back")]
pub struct Drain {
    #[arg(help = SELECTOR)]
    backend: String,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    view: View,
}

impl Drain {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let changed = client.post("/v1/backends/drain", &json!({ "backend": self.backend })).await?;
        finish(client, changed, &self.view, &self.waiting, Goal::Drained).await
    }
}

/// End a drain that `weir drain` began
///
/// If the file drains the backend, it stays drained: change the file. With --wait, the command
/// returns when the backend gets new connections, or exits with 1 after --timeout.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir undrain web/10.2.0.11:8080
  weir undrain 10.2.0.11 --wait --timeout 30s")]
pub struct Undrain {
    #[arg(help = SELECTOR)]
    backend: String,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    view: View,
}

impl Undrain {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let changed = client.post("/v1/backends/undrain", &json!({ "backend": self.backend })).await?;
        finish(client, changed, &self.view, &self.waiting, Goal::Serving).await
    }
}

/// Change settings of a running agent
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir set weight web/10.2.0.11:8080 3
  weir set weight web/10.2.0.11:8080 --reset")]
pub struct Set {
    #[command(subcommand)]
    what: SetWhat,
}

#[derive(Debug, Subcommand)]
enum SetWhat {
    Weight(SetWeight),
}

/// Override the weight of a backend
///
/// The override persists across reloads and restarts until --reset removes it. With weight 0, the
/// backend gets no new connections.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir set weight web/10.2.0.11:8080 3
  weir set weight 10.2.0.11 0
  weir set weight 10.2.0.11 --reset      the file's weight again")]
struct SetWeight {
    #[arg(help = SELECTOR)]
    backend: String,
    /// The backend's share of new connections, in relation to the weights of the others
    #[arg(required_unless_present = "reset")]
    weight: Option<u32>,
    /// Use the weight from the file again
    #[arg(long, conflicts_with = "weight")]
    reset: bool,
    #[command(flatten)]
    view: View,
}

impl Set {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let SetWhat::Weight(set) = self.what;
        let body = json!({ "backend": set.backend, "weight": set.weight });
        let changed: Changed = client.post("/v1/backends/weight", &body).await?;
        output::print(&set.view.text(&changed, |changed, _| messages(changed))?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Read the configuration file again, now
///
/// The agent also reads the file by itself when it changes. A file with mistakes changes nothing.
/// Neither does a file that would move every connection of a running service (`hashSeed`,
/// `ringSize`, `affinity`), unless --accept-loss allows that connections break.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir config check /etc/weir/weir.yaml && weir reload
  weir reload --accept-loss
  weir reload --quiet --pid \"$MAINPID\"          as the systemd unit does")]
pub struct Reload {
    /// Apply the file even if connections break
    #[arg(long)]
    accept_loss: bool,
    /// Print nothing if the agent answers; the agent logs the file's mistakes
    #[arg(short, long)]
    quiet: bool,
    /// Ask the agent with this process id, whatever its socket is; --socket and WEIR_SOCKET take
    /// precedence
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    #[command(flatten)]
    view: View,
}

impl Reload {
    /// The client of the process that `--pid` names, else `default`.
    pub fn client(&self, default: Client) -> anyhow::Result<Client> {
        self.pid.map_or(Ok(default), |pid| Ok(Client::new(process::socket_of(pid)?)))
    }

    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let answer = client.post::<Changed>("/v1/reload", &json!({ "acceptLoss": self.accept_loss })).await;
        match answer {
            Ok(_) if self.quiet => {}
            Ok(changed) => output::print(&self.view.text(&changed, |changed, _| messages(changed))?)?,
            // Other refusals are not about the file, so the agent does not log them.
            Err(Failure::Refused(error)) if self.quiet && error.code == ErrorCode::Invalid => {
                return Ok(ExitCode::from(1));
            }
            Err(failure) => return Err(failure.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says what was done and, if asked to, waits for its effect. A document is printed once, with the
/// state at the end.
async fn finish(
    client: &Client,
    mut changed: Changed,
    view: &View,
    waiting: &Waiting,
    goal: Goal,
) -> anyhow::Result<ExitCode> {
    if view.is_for_people() {
        output::print(&messages(&changed))?;
    }
    let mut status = ExitCode::SUCCESS;
    if waiting.wait {
        let waited = wait::until(client, goal, &changed.backends, waiting.timeout).await?;
        if view.is_for_people() {
            output::print(&format!("{}\n", waited.message))?;
        }
        if !waited.done {
            status = ExitCode::from(1);
        }
        changed.messages.push(waited.message);
        changed.backends = waited.backends;
    }
    if matches!(view.output, Format::Json | Format::Yaml) {
        output::print(&view.text(&changed, |_, _| String::new())?)?;
    }
    Ok(status)
}

fn messages(changed: &Changed) -> String {
    changed.messages.iter().map(|message| format!("{message}\n")).collect()
}
