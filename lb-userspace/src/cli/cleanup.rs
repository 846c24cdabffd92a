//! `weir cleanup`: the only command that removes Weir from the machine.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    client::{Client, Failure},
    output,
};
use crate::{
    dataplane::{self},
    node::interfaces::Netlink,
    view::types::Status,
};

/// Detach the programs and remove the maps; every connection through Weir ends
///
/// Stopping the agent does not detach the programs: they run without it. This command refuses to
/// run while an agent runs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  systemctl stop weir && weir cleanup")]
pub struct Cleanup {
    /// Where the maps and links are pinned
    #[arg(long, env = "WEIR_PIN_DIR", value_name = "DIR", default_value = dataplane::bpffs::PIN_DIR)]
    pin_dir: PathBuf,
    /// Clean up even if an agent answers on --socket
    #[arg(long)]
    force: bool,
}

impl Cleanup {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        if !self.force {
            refuse_beside_an_agent(client).await?;
        }
        let mut done = dataplane::cleanup::cleanup(&self.pin_dir)?;
        // Otherwise the kernel would keep probing the backends for ever.
        let neighbours = Netlink::connect()?.forget_neighbours().await?;
        done.extend(neighbours.iter().map(|(_, address)| format!("no longer kept resolved: neighbour {address}")));
        if done.is_empty() {
            output::print(&format!("nothing to clean up in {}\n", self.pin_dir.display()))?;
        }
        done.iter().try_for_each(|line| output::print(&format!("{line}\n")))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn refuse_beside_an_agent(client: &Client) -> anyhow::Result<()> {
    match client.get::<Status>("/v1/status").await {
        Err(Failure::NoSocket { .. } | Failure::Dead { .. }) => Ok(()),
        Ok(_) => anyhow::bail!(
            "an agent runs on {}, and would attach everything again; stop it first (`systemctl stop weir`), or use \
            --force",
            client.path()
        ),
        Err(other) => anyhow::bail!("whether an agent runs cannot be told, use --force if none does: {other}"),
    }
}
