//! `weir get`: lists services, backends, flows, drops or interfaces.

pub(super) mod backends;
mod drops;
mod flows;
mod interfaces;
mod services;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    client::{Client, Failure},
    output::{self, View, Watch},
    table::{self, Column},
};

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
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
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
            What::Services(list) => list.run(client).await?,
            What::Backends(list) => list.run(client).await?,
            What::Flows(list) => list.run(client).await?,
            What::Drops(list) => list.run(client).await?,
            What::Interfaces(list) => list.run(client).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The flags that every list has.
#[derive(Args, Debug)]
struct Listing {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

impl Listing {
    /// Shows the rows as a table; that there are none is said on standard error, and `none` says
    /// what.
    async fn show<T: Serialize>(
        &self,
        columns: &[Column<T>],
        none: &str,
        fetch: impl AsyncFn() -> Result<Vec<T>, Failure>,
    ) -> anyhow::Result<Vec<T>> {
        output::show(&self.view, &self.watch, fetch, |rows: &Vec<T>, style| {
            if rows.is_empty() {
                eprintln!("{none}");
            }
            table::table(columns, rows, style)
        })
        .await
    }
}
