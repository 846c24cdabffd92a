//! The command line: queries the agent over its socket and shows the answer, or runs as the agent.

mod agent;
mod change;
mod cleanup;
mod client;
mod completion;
mod config;
mod diff;
mod doctor;
mod get;
mod logging;
mod lookup;
mod output;
mod process;
mod status;
mod table;
mod text;
mod trace;
mod wait;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};

use crate::serve::DEFAULT_SOCKET;
use client::Client;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = cli.command.failure_status();
    match cli.run() {
        Ok(status) => status,
        // The reader of our output has closed the pipe, which is no error.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::from(failure)
        }
    }
}

/// Weir, a TCP load balancer whose data path is an XDP program.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXAMPLES)]
struct Cli {
    /// The socket of the agent's API [default: /run/weir/agent.sock]
    #[arg(long, global = true, env = "WEIR_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  (umask 077; weir config init > /etc/weir/weir.yaml)
                                              a commented configuration to begin with
  weir doctor                                 what is wrong on this machine, and how to fix it
  weir status                                 is all well? exits with 0, 1 or 2: ok, degraded, down
  weir get backends web --watch               the backends of a service, every 2 seconds
  weir drain web/10.2.0.11:8080 --wait        take a backend out without losing a connection

Every flag with [env: WEIR_...] can be set by that variable.";

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Agent),
    Status(status::Status),
    Get(get::Get),
    Lookup(lookup::Lookup),
    Trace(trace::Trace),
    Drain(change::Drain),
    Undrain(change::Undrain),
    Set(change::Set),
    Reload(change::Reload),
    Diff(diff::Diff),
    Doctor(doctor::Doctor),
    Config(config::Config),
    Cleanup(cleanup::Cleanup),
    Completion(completion::Completion),
}

impl Command {
    /// The exit status of a failure; for `status` and `diff`, 1 already has another meaning.
    fn failure_status(&self) -> u8 {
        match self {
            Command::Status(_) | Command::Diff(_) => 2,
            _ => 1,
        }
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let named = self.socket;
        let client = Client::new(named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)));
        match self.command {
            Command::Agent(command) => command.run(),
            Command::Status(command) => asking(command.run(&client)),
            Command::Get(command) => asking(command.run(&client)),
            Command::Lookup(command) => asking(command.run(&client)),
            Command::Trace(command) => asking(command.run(&client)),
            Command::Drain(command) => asking(command.run(&client)),
            Command::Undrain(command) => asking(command.run(&client)),
            Command::Set(command) => asking(command.run(&client)),
            Command::Reload(command) => {
                let client = if named.is_some() { client } else { command.client(client)? };
                asking(command.run(&client))
            }
            Command::Diff(command) => asking(command.run(&client)),
            Command::Doctor(command) => asking(command.run(&client)),
            Command::Cleanup(command) => asking(command.run(&client)),
            Command::Config(command) => command.run(),
            Command::Completion(command) => command.run(Cli::command()),
        }
    }
}

/// Runs a command that talks to the agent.
fn asking(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the command's event loop")?
        .block_on(command)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_the_default_socket() {
        assert!(Cli::command().render_help().to_string().contains(&format!("[default: {DEFAULT_SOCKET}]")));
    }

    #[test]
    fn every_command_shows_examples_in_its_help() {
        fn check(command: &clap::Command) {
            let leaf = !command.has_subcommands();
            assert!(!leaf || command.get_after_help().is_some(), "{} has no examples", command.get_name());
            command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }
}
