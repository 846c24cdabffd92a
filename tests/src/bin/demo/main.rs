//! `cargo xtask demo`: Weir at work in network namespaces, with what was promised and what was
//! seen.

mod report;
mod stage;
mod steps;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use weir_tests::{bed::VIP_V4, leftovers, tools::url};

use crate::{report::Report, stage::Stage};

/// Shows Weir at work: a client, a balancer and three web servers in network namespaces.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON document on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end, and say how to look around.
    #[arg(long)]
    keep: bool,
    /// Remove what `--keep` has left, and end.
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: a promise was broken; see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every promise was kept.
fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.clean {
        for id in leftovers::remove_kept()? {
            eprintln!("removed the demo {id}");
        }
        return Ok(true);
    }
    let mut stage = Stage::set()?;
    let steps = steps::play(&mut stage)?;
    let report = Report::new(&stage, steps);
    stage.end_load()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    if arguments.keep {
        keep(stage)?;
    }
    Ok(report.ok)
}

fn keep(stage: Stage) -> Result<()> {
    let Stage { bed, agent, web, .. } = stage;
    let (client, lb) = (&bed.client.name, &bed.lb.name);
    let (weir, socket) = (weir_tests::agent::weir_binary()?, agent.socket.display());
    let weir = weir.canonicalize().unwrap_or(weir);
    let weir = weir.display();
    let page = url((VIP_V4, 80).into(), "/");
    eprintln!("\nEverything stays. Look around:");
    eprintln!("  ip netns exec {client} curl -s {page}");
    eprintln!("  {weir} --socket {socket} status");
    eprintln!("  {weir} --socket {socket} get backends -o wide");
    eprintln!("  {weir} --socket {socket} drain web/10.2.0.12:8080");
    eprintln!("  ip netns exec {lb} ip -brief address");
    eprintln!("  less {}", agent.log.display());
    eprintln!("Remove it: cargo xtask demo --clean");
    agent.keep();
    web.into_iter().for_each(weir_tests::servers::Nginx::keep);
    bed.keep()
}
