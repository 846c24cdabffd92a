//! `weir diff`: compares the wanted state with the kernel's maps.

use std::process::ExitCode;

use clap::Args;

use super::{
    client::Client,
    output::{self, View, Watch},
    table::{self, Column},
};
use crate::view::types::DiffView;

/// Show the differences between the wanted state and the maps in the kernel
///
/// Exits with 0 when there is no difference, 1 when there are differences, 2 when they could not be
/// compared. The agent repairs differences within seconds; if one persists, look at the agent's
/// log.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir diff
  weir diff -o json && echo in sync")]
pub struct Diff {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

impl Diff {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let fetch = async || client.get::<Vec<DiffView>>("/v1/diff").await;
        let differences = output::show(&self.view, &self.watch, fetch, |rows, style| match rows.as_slice() {
            [] => "equal: the kernel's maps hold what is wanted\n".to_owned(),
            rows => table::table(COLUMNS, rows, style),
        })
        .await?;
        Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

const COLUMNS: &[Column<DiffView>] = &[
    Column::new("MAP", |diff, _| diff.map.clone()),
    Column::new("KEY", |diff, _| diff.key.clone()),
    Column::new("DESIRED", |diff, _| diff.desired.clone()),
    Column::new("PROGRAMMED", |diff, _| diff.programmed.clone()),
];
