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
    /// Wait until it is done
    #[arg(long)]
    wait: bool,
    /// Wait so long at most, and exit with 1 if it is not done by then
    #[arg(long, env = "WEIR_TIMEOUT", value_name = "DURATION", value_parser = interval)]
    timeout: Option<Duration>,
}

/// Take a backend out gently: no new connections, old ones go on
///
/// The drain stays over reloads and restarts until `weir undrain`. With --wait it exits when the
/// backend has no connections, or, in DSR modes, where they are not counted, when the drain is
/// over; with 1 when the drain ends, or --timeout passes, before that, saying what remains.
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

/// Take a drain back that `weir drain` began
///
/// A backend that the file drains stays drained: change the file. With --wait it exits when the
/// backend gets new connections, or with 1 after --timeout.
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

/// Give a backend another weight than the file does
///
/// It stays over reloads and restarts until it is taken back by --reset. A weight of 0 ends new
/// connections.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir set weight web/10.2.0.11:8080 3
  weir set weight 10.2.0.11 0
  weir set weight 10.2.0.11 --reset      the file's weight again")]
struct SetWeight {
    #[arg(help = SELECTOR)]
    backend: String,
    /// Its share of new connections, against the weights of the others
    #[arg(required_unless_present = "reset")]
    weight: Option<u32>,
    /// Take the file's weight again
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
/// The agent does so by itself when the file changes. A file with mistakes changes nothing. So does
/// one that would move every connection of a running service (`hashSeed`, `ringSize`, `affinity`),
/// unless --accept-loss says that they may break.
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
    /// Print nothing if the agent has answered: its log has the mistakes of the file
    #[arg(short, long)]
    quiet: bool,
    /// Ask the agent with this process id, whatever its socket; --socket and WEIR_SOCKET win
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    #[command(flatten)]
    view: View,
}

impl Reload {
    /// The client of the process that is asked, else `default`.
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

/// Says what was done and, if asked to, waits for what comes of it. A document is printed once, as
/// things stand at the end.
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
