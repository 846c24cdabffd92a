//! wrk through `nat` against wrk through a plain router, on two beds alike that take turns; medians
//! and their ratio. Not a test: it judges nothing, and other work on the machine shows in it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIPS},
    config::{AgentConfig, Health},
    tools::{Wrk, url, wrk},
};

/// Compares HTTP through Weir with HTTP through a plain router. Needs root.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the median of these is shown.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each run.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of wrk.
    #[arg(long, default_value_t = 64)]
    connections: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plain = Bed::new(Layout::Routed, 1)?;
    let _plain_web = plain.start_web_servers()?;
    let weir = Bed::new(plain.layout, 1)?;
    let _weir_web = weir.start_web_servers()?;
    let agent = Agent::start(&weir, &AgentConfig::web(&weir, 1, Health::QUICK))?;
    agent.wait_all_up()?;
    for vip in VIPS {
        for keep_alive in [true, false] {
            compare(&arguments, &plain, &weir, vip, keep_alive)?;
        }
    }
    Ok(())
}

fn compare(arguments: &Arguments, plain: &Bed, weir: &Bed, vip: IpAddr, keep_alive: bool) -> Result<()> {
    let run = |bed: &Bed, to| {
        wrk(&bed.client, &url(to, "/"), arguments.connections, Duration::from_secs(arguments.seconds), keep_alive)
    };
    let mut direct = Vec::new();
    let mut through = Vec::new();
    for round in 1..=arguments.rounds {
        direct.push(run(plain, plain.backend(1, vip))?);
        through.push(run(weir, (vip, 80).into())?);
        eprintln!("round {round} of {}", arguments.rounds);
    }
    let errors = |runs: &[Wrk]| runs.iter().map(|run| run.errors).sum::<u64>();
    let (fast, slow) = (median(&direct)?, median(&through)?);
    let kind = if keep_alive { "keep-alive" } else { "a new connection per request" };
    println!(
        "{vip}, {kind}: direct {fast:.0}/s ({} errors), nat {slow:.0}/s ({} errors), ratio {:.2}",
        errors(&direct),
        errors(&through),
        slow / fast
    );
    Ok(())
}

fn median(runs: &[Wrk]) -> Result<f64> {
    let mut rates: Vec<f64> = runs.iter().map(|run| run.requests_per_second).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().context("at least one round")
}
