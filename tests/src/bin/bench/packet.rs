//! `bench packet`: all cases take turns over several rounds, so that each meets the machine fast
//! and slow; the least and the median of each are kept.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cases::{Case, Kind},
    network,
    report::{Report, Row},
    setup,
    stage::Stage,
    turn::{Baseline, Turn},
    wrapper::Wrapper,
};

#[derive(Args)]
pub struct Arguments {
    /// Print one JSON array on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Print the table as docs/performance.md has it.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Few rounds and at most 64k flows: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Rounds; 40, or 5 with --quick.
    #[arg(long)]
    rounds: Option<u32>,
    /// Packets of a turn; 100000, or 50000 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1000..))]
    packets: Option<u32>,
    /// Only cases with this in their names ("dsr-l2 v4 data 1M 10%"), and the floor; may be given
    /// several times.
    #[arg(long)]
    only: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 5 } else { 40 });
    ensure!(rounds > 0, "--rounds 0 measures nothing");
    let packets = arguments.packets.unwrap_or(if arguments.quick { 50_000 } else { 100_000 });
    let mut bench = setup::bench(network::one_armed()?, arguments.cases())?;
    eprintln!("{} cases, {rounds} rounds of {packets} packets each", bench.turns.len());
    bench.warm_up()?;
    for round in 1..=rounds {
        bench.round(packets)?;
        eprintln!("round {round} of {rounds}");
    }
    let report = bench.report()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report.rows)?);
        eprint!("{}", report.promises());
    } else {
        println!("{}\n", if arguments.markdown { report.markdown() } else { report.table() });
        println!("{}", report.promises());
        println!("What was subtracted: the wrapper and a target that does nothing.\n{}", report.wrapper.join("\n"));
    }
    Ok(())
}

impl Arguments {
    fn cases(&self) -> Vec<Case> {
        let is_wanted = |case: &Case| {
            let name = case.to_string();
            case.kind == Kind::Floor || self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
        };
        Case::all(self.quick).into_iter().filter(is_wanted).collect()
    }
}

pub struct Bench {
    pub wrapper: Wrapper,
    pub stages: Vec<Stage>,
    pub turns: Vec<Turn>,
    pub baselines: BTreeMap<Baseline, Turn>,
}

/// The fewest and the most packets that are sent to fill the tables.
const WARM_UP_LEAST: u32 = 1 << 16;
const WARM_UP_MOST: u32 = 1 << 22;

/// So many cases have their turns until what they are measured by has one again.
const CASES_BETWEEN: usize = 12;

impl Bench {
    /// Lets the tables of slots in transition fill as they would.
    fn warm_up(&mut self) -> Result<()> {
        for turn in &mut self.turns {
            let case = turn.case;
            if let Some(case) = case.filter(|case| case.transition > 0) {
                eprintln!("filling {case}");
                let packets = case.flows.clamp(WARM_UP_LEAST, WARM_UP_MOST);
                turn.send(&mut self.wrapper, &self.stages, packets)?;
            }
        }
        Ok(())
    }

    /// A turn for each case; every few of them one for all that the others are measured by, whose
    /// errors would be in every ratio.
    fn round(&mut self, packets: u32) -> Result<()> {
        let (floors, cases): (Vec<_>, Vec<_>) =
            self.turns.iter_mut().partition(|turn| turn.case.is_some_and(|case| case.kind == Kind::Floor));
        let mut measures: Vec<&mut Turn> = self.baselines.values_mut().chain(floors).collect();
        let mut cases = cases.into_iter();
        loop {
            for turn in &mut measures {
                turn.take(&mut self.wrapper, &self.stages, packets)?;
            }
            let mut few = cases.by_ref().take(CASES_BETWEEN).peekable();
            if few.peek().is_none() {
                return Ok(());
            }
            for turn in few {
                turn.take(&mut self.wrapper, &self.stages, packets)?;
            }
        }
    }

    fn report(&self) -> Result<Report> {
        let mut rows = Vec::new();
        for turn in &self.turns {
            if let Some(case) = turn.case {
                rows.push(Row::new(&case, self.net(turn, &case, least)?, self.net(turn, &case, median)?));
            }
        }
        let wrapper = self
            .baselines
            .iter()
            .map(|(baseline, turn)| format!("{baseline}: {:.1} ns, median {:.1}", least(&turn.ns), median(&turn.ns)));
        Ok(Report { wrapper: wrapper.collect(), rows })
    }

    /// What the target alone costs.
    fn net(&self, turn: &Turn, case: &Case, of: fn(&[f64]) -> f64) -> Result<f64> {
        let [cost, more] = Baseline::of(turn.wrapper, case)
            .map(|baseline| self.baselines.get(&baseline).map(|turn| of(&turn.ns)).context("no baseline"));
        let (cost, more) = (cost?, more?);
        // `null` twice, or `push` and `push_thrice`, which moves the head twice more: one move is
        // the target's own.
        let one_move = (more - cost) / 2.0;
        Ok(of(&turn.ns) - (cost - one_move))
    }
}

fn least(ns: &[f64]) -> f64 {
    ns.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(ns: &[f64]) -> f64 {
    let mut sorted = ns.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
