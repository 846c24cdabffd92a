//! What all lists have in common.

use clap::Args;
use serde::Serialize;

use super::super::{
    client::Failure,
    output::{self, View, Watch},
    table::{self, Column},
};

/// The flags that every list has.
#[derive(Args, Debug)]
pub struct Listing {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

impl Listing {
    /// Shows the rows as a table; if there are none, prints `none` on standard error.
    pub async fn show<T: Serialize>(
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
