//! `weir config`: check, init, schema. None of them needs an agent.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{output, text};
use crate::config;

/// The default configuration file.
pub const DEFAULT_CONFIG: &str = "/etc/weir/weir.yaml";

/// Check a configuration file, print an example or the schema
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  (umask 077; weir config init > /etc/weir/weir.yaml)
  weir config check /etc/weir/weir.yaml
  weir config schema > weir.schema.json")]
pub struct Config {
    #[command(subcommand)]
    what: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    Check(Check),
    Init(Init),
    Schema(Schema),
}

/// Check a file, and report all mistakes at once, each with line, key and reason
///
/// Exits with 1 if there are any. Mistakes that depend on this machine (interfaces, capabilities)
/// are found by `weir doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir config check weir.yaml
  weir config check /etc/weir/weir.yaml && weir reload")]
struct Check {
    #[arg(env = "WEIR_CONFIG", default_value = DEFAULT_CONFIG)]
    file: PathBuf,
}

/// Print a commented example with a random hash seed
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  (umask 077; weir config init > /etc/weir/weir.yaml)")]
struct Init {}

/// Print the JSON schema of the file, for editors and checkers
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir config schema > weir.schema.json
  # yaml-language-server: $schema=weir.schema.json     the first line of weir.yaml")]
struct Schema {}

impl Config {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            ConfigCommand::Check(Check { file }) => check(&file),
            ConfigCommand::Init(_) => {
                output::print(&config::example().context("cannot make a random hash seed")?)?;
                Ok(ExitCode::SUCCESS)
            }
            ConfigCommand::Schema(_) => {
                let schema =
                    serde_json::to_string_pretty(&config::schema()).context("cannot write the schema as JSON")?;
                output::print(&(schema + "\n"))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    match config::load(file) {
        Ok(config) => {
            let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
            let services = text::counted(config.services.len() as u64, "service");
            let backends = text::counted(backends as u64, "backend");
            output::print(&format!("{}: good: {services}, {backends}\n", file.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let messages = error.messages();
            messages.iter().for_each(|message| eprintln!("{message}"));
            eprintln!("{}: {}", file.display(), text::counted(messages.len() as u64, "problem"));
            Ok(ExitCode::from(1))
        }
    }
}
