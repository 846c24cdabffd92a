//! `bench forward`: live frames through veth, redirected by Weir, by a program that only redirects,
//! and by the floor of `bench packet`, in turns; packets a second that come to the end.
//!
//! ```text
//! generator ── veth ── front [Weir, a bare redirect, or the floor] back ── veth ── sink [counts]
//! ```

use anyhow::{Context, Result, ensure};
use aya::programs::{Xdp, XdpMode};
use clap::Args;
use comfy_table::{
    CellAlignment, Table,
    presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED},
};
use lb_common::{
    bench::{Plan, name},
    flow::Family,
};

use crate::{
    cases::{Case, DSR, Kind, SOME},
    frames, network, setup,
    stage::Stage,
    talk,
    wrapper::Wrapper,
};

#[derive(Args)]
pub struct Arguments {
    /// Print the table as docs/performance.md has it.
    #[arg(long)]
    markdown: bool,
    /// Rounds; the median and the best are shown.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets of a turn.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    packets: u32,
}

/// Weir's part of a bare redirect.
const LEAST: f64 = 0.85;

pub fn run(arguments: &Arguments) -> Result<()> {
    let wires = network::two_armed()?;
    let mut wrapper = Wrapper::load(wires.generator, wires.back)?;
    attach(wrapper.program_mut(name::SINK)?, wires.sink)?;
    wrapper.aim_at_own(name::NULL)?;
    let mut stage = Stage::load_for_few(wires.front)?;
    stage.open_way_out(wires.back)?;
    let mut rows = Vec::new();
    for mode in &DSR {
        for family in Family::BOTH {
            let case = Case { mode: Some(mode), family, kind: Kind::Data, flows: SOME, transition: 0 };
            rows.push(Row::new(case, &mut stage)?);
        }
    }
    for round in 1..=arguments.rounds {
        for row in &mut rows {
            row.take_turns(&mut wrapper, &mut stage, wires.front, arguments.packets)?;
        }
        eprintln!("round {round} of {}", arguments.rounds);
    }
    println!(
        "Millions of packets a second, best and median of {} rounds.\n\n{}\n",
        arguments.rounds,
        table(&rows, arguments.markdown)
    );
    for row in &rows {
        let ratio = row.ratio(&row.weir);
        let verdict = if ratio >= LEAST { "holds" } else { "BROKEN" };
        println!(
            "{verdict:<7} {} v{}: {ratio:.2} of a bare redirect, at least {LEAST}",
            row.case.mode_name(),
            row.case.family.number()
        );
    }
    Ok(())
}

/// One mode in one family, and a bare redirect and the floor with the same frames.
struct Row {
    case: Case,
    plan: Plan,
    bare: Vec<f64>,
    floor: Vec<f64>,
    weir: Vec<f64>,
}

impl Row {
    fn new(case: Case, stage: &mut Stage) -> Result<Self> {
        let mode = case.mode.context("a case without a mode")?;
        let vip = stage.serve(mode, case.family, 0)?;
        let frame = frames::segment(case.kind, talk::client_of(case.family, 0, 0), vip)?;
        Ok(Self { case, plan: setup::plan(&case, &frame, 0)?, bare: Vec::new(), floor: Vec::new(), weir: Vec::new() })
    }

    fn take_turns(&mut self, wrapper: &mut Wrapper, stage: &mut Stage, front: u32, packets: u32) -> Result<()> {
        let bare = self.rate_of_own(wrapper, name::REDIRECT, front, packets)?;
        self.bare.push(bare);
        let floor = match self.case.family {
            Family::V4 => name::REDIRECT_FLOOR_V4,
            Family::V6 => name::REDIRECT_FLOOR_V6,
        };
        let floor = self.rate_of_own(wrapper, floor, front, packets)?;
        self.floor.push(floor);

        let link = attach(stage.program_mut()?, front)?;
        self.weir.push(self.rate(wrapper, packets)?);
        stage.program_mut()?.detach(link)?;
        Ok(())
    }

    /// That of a program of the bench's own object.
    fn rate_of_own(&self, wrapper: &mut Wrapper, name: &str, front: u32, packets: u32) -> Result<f64> {
        let link = attach(wrapper.program_mut(name)?, front)?;
        let rate = self.rate(wrapper, packets)?;
        wrapper.program_mut(name)?.detach(link)?;
        Ok(rate)
    }

    /// Millions of packets a second that come to the end.
    fn rate(&self, wrapper: &mut Wrapper, packets: u32) -> Result<f64> {
        let generator = match self.case.family {
            Family::V4 => name::FROM_CLIENTS_V4,
            Family::V6 => name::FROM_CLIENTS_V6,
        };
        wrapper.send_live(generator, &self.plan, packets / 8)?;
        let before = wrapper.arrived()?;
        let time = wrapper.send_live(generator, &self.plan, packets)?;
        let arrived = wrapper.arrived()? - before;
        // What a full queue drops when the machine is busy is no mistake; most of them is.
        ensure!(arrived > u64::from(packets) / 2, "{}: {arrived} of {packets} packets came to the end", self.case);
        Ok(arrived as f64 / f64::from(packets) / time.as_secs_f64() / 1e6)
    }

    /// Its rate to that of a bare redirect.
    fn ratio(&self, rates: &[f64]) -> f64 {
        best(rates) / best(&self.bare)
    }
}

fn attach(program: &mut Xdp, ifindex: u32) -> Result<aya::programs::xdp::XdpLinkId> {
    program.attach_to_if_index(ifindex, XdpMode::Driver).context("can't attach to a veth")
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(rows: &[Row], markdown: bool) -> Table {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { UTF8_FULL_CONDENSED });
    let measured = ["bare redirect", "floor", "Weir"].map(|what| [format!("{what}, best"), "median".to_owned()]);
    let ratios = ["floor to bare", "Weir to bare"].map(str::to_owned);
    table.set_header(
        ["mode", "family"].map(str::to_owned).into_iter().chain(measured.into_iter().flatten()).chain(ratios),
    );
    for row in rows {
        let service = [row.case.mode_name().to_owned(), format!("v{}", row.case.family.number())];
        let measured = [&row.bare, &row.floor, &row.weir].map(|rates| [best(rates), median(rates)]);
        let measured = measured.into_iter().flatten().map(|rate| format!("{rate:.2}"));
        let ratios = [&row.floor, &row.weir].map(|rates| format!("{:.2}", row.ratio(rates)));
        table.add_row(service.into_iter().chain(measured).chain(ratios));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
