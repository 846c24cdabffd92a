//! `weir get`: lists services, backends, flows, drops or interfaces.

pub(super) mod backends;
mod drops;
mod flows;
mod interfaces;
mod listing;
mod services;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::Client;

/// List services, backends, flows, drops or interfaces
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get services
  weir get backends web -o wide
  weir get drops --watch
  weir get flows --client 198.51.100.7 -o json")]
pub struct Get {
    #[command(subcommand)]
    what: GetCommand,
}

#[derive(Debug, Subcommand)]
enum GetCommand {
    #[command(visible_aliases = ["service", "svc"])]
    Services(services::Services),
    #[command(visible_alias = "backend")]
    Backends(backends::Backends),
    #[command(visible_alias = "flow")]
    Flows(flows::Flows),
    #[command(visible_alias = "drop")]
    Drops(drops::Drops),
    #[command(visible_alias = "interface")]
    Interfaces(interfaces::Interfaces),
}

impl Get {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        match self.what {
            GetCommand::Services(list) => list.run(client).await?,
            GetCommand::Backends(list) => list.run(client).await?,
            GetCommand::Flows(list) => list.run(client).await?,
            GetCommand::Drops(list) => list.run(client).await?,
            GetCommand::Interfaces(list) => list.run(client).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
