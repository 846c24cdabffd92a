//! What is said in the end: every case with its ratio to the floor, and which promises hold.

use std::{collections::BTreeSet, fmt::Write as _};

use comfy_table::{
    CellAlignment, Table,
    presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED},
};
use lb_common::flow::Family;
use serde::Serialize;

use crate::cases::{Case, DSR, Kind, MILLION, shown};

#[derive(Serialize)]
pub struct Row {
    pub mode: &'static str,
    pub family: u8,
    pub kind: Kind,
    pub flows: u32,
    pub transition: u32,
    pub ns_median: f64,
    pub ns_min: f64,
}

pub struct Report {
    /// What the wrapper itself cost, in words.
    pub wrapper: Vec<String>,
    pub rows: Vec<Row>,
}

impl Row {
    pub fn new(case: &Case, ns_min: f64, ns_median: f64) -> Self {
        let hundredths = |ns: f64| (ns * 100.0).round() / 100.0;
        Self {
            mode: case.mode_name(),
            family: case.family.number(),
            kind: case.kind,
            flows: case.flows,
            transition: case.transition,
            ns_median: hundredths(ns_median),
            ns_min: hundredths(ns_min),
        }
    }

    /// Mode and family, for a person.
    fn service(&self) -> String {
        format!("{} v{}", self.mode, self.family)
    }
}

/// At most so many times the floor.
const STEADY_V4: f64 = 3.5;
const STEADY_V6: f64 = 4.5;
const SYN_MORE: f64 = 1.0;
const IN_TRANSITION: f64 = 7.0;
const NOT_VIP: f64 = 1.5;
/// The dearest number of flows to the cheapest.
const FLAT: f64 = 1.15;

impl Report {
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header([
            "mode",
            "family",
            "kind",
            "flows",
            "in transition",
            "ns, least",
            "ns, median",
            "times the floor",
        ]);
        for row in &self.rows {
            table.add_row([
                row.mode.to_owned(),
                format!("v{}", row.family),
                row.kind.name().to_owned(),
                shown(row.flows),
                format!("{} %", row.transition),
                format!("{:.1}", row.ns_min),
                format!("{:.1}", row.ns_median),
                format!("{:.2}", self.ratio(row)),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// A line for each mode, kind and share in transition, a column for each number of flows: the
    /// least nanoseconds, and times the floor. As docs/performance.md has it.
    pub fn markdown(&self) -> Table {
        let flows: BTreeSet<u32> = self.rows.iter().map(|row| row.flows).collect();
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let columns = flows.iter().map(|flows| format!("{} flows", shown(*flows)));
        table.set_header(["mode", "kind", "in transition"].map(str::to_owned).into_iter().chain(columns));
        let mut lines: Vec<(String, &str, u32)> = Vec::new();
        for row in &self.rows {
            let line = (row.service(), row.kind.name(), row.transition);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        for line in lines {
            let is_here = |row: &&Row| (row.service(), row.kind.name(), row.transition) == line;
            let cells = flows.iter().map(|flows| {
                let row = self.rows.iter().filter(is_here).find(|row| row.flows == *flows);
                row.map_or_else(String::new, |row| format!("{:.1} ({:.2})", row.ns_min, self.ratio(row)))
            });
            let transition = format!("{} %", line.2);
            table.add_row([line.0.clone(), line.1.to_owned(), transition].into_iter().chain(cells));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn ratio(&self, row: &Row) -> f64 {
        let floor = self.rows.iter().find(|other| other.kind == Kind::Floor && other.family == row.family);
        floor.map_or(f64::NAN, |floor| row.ns_min / floor.ns_min)
    }

    /// A line for each promise of which something was measured.
    pub fn promises(&self) -> String {
        let mut lines = String::new();
        for family in Family::BOTH {
            let v = family.number();
            let of_family = |kind| self.rows.iter().filter(move |row| row.family == v && row.kind == kind);
            for mode in DSR.iter().map(|mode| mode.name) {
                let of_mode = |kind, transition| {
                    of_family(kind).filter(move |row| row.mode == mode && row.transition == transition)
                };
                let most = if family == Family::V4 { STEADY_V4 } else { STEADY_V6 };
                self.at_most(&mut lines, &format!("{mode} v{v} data, steady"), of_mode(Kind::Data, 0), most);
                let by_cost = |a: &&Row, b: &&Row| a.ns_min.total_cmp(&b.ns_min);
                let ends = (of_mode(Kind::Data, 0).min_by(by_cost), of_mode(Kind::Data, 0).max_by(by_cost));
                if let (Some(least), Some(most)) =
                    ends.0.zip(ends.1).filter(|_| of_mode(Kind::Data, 0).count() > 1).unzip()
                {
                    let spread = most.ns_min / least.ns_min;
                    let note = format!("from {} flows to {}", shown(least.flows), shown(most.flows));
                    line(&mut lines, &format!("{mode} v{v} data, dearest to cheapest"), spread, FLAT, &note);
                }
                let more = |syn: &&Row| {
                    let data = of_mode(Kind::Data, 0).find(|data| data.flows == syn.flows)?;
                    Some((self.ratio(syn) - self.ratio(data), syn.flows))
                };
                let syns = of_mode(Kind::Syn, 0);
                let worst = syns.filter_map(|syn| more(&syn)).max_by(|a, b| a.0.total_cmp(&b.0));
                if let Some((more, flows)) = worst {
                    let note = format!("at {} flows", shown(flows));
                    line(&mut lines, &format!("{mode} v{v} syn, more than data"), more, SYN_MORE, &note);
                }
                for kind in [Kind::Data, Kind::Syn] {
                    let rows = of_mode(kind, 10).filter(|row| row.flows == MILLION);
                    let what = format!("{mode} v{v} {}, a tenth in transition", kind.name());
                    self.at_most(&mut lines, &what, rows, IN_TRANSITION);
                }
            }
            self.at_most(&mut lines, &format!("not a VIP, v{v}"), of_family(Kind::NotVip), NOT_VIP);
        }
        lines
    }

    fn at_most<'a>(&self, lines: &mut String, what: &str, rows: impl Iterator<Item = &'a Row>, most: f64) {
        let ratios = rows.map(|row| (self.ratio(row), row.flows));
        if let Some((ratio, flows)) = ratios.max_by(|a, b| a.0.total_cmp(&b.0)) {
            line(lines, what, ratio, most, &format!("at {} flows", shown(flows)));
        }
    }
}

fn line(lines: &mut String, what: &str, is: f64, most: f64, note: &str) {
    let verdict = if is <= most { "holds" } else { "BROKEN" };
    writeln!(lines, "{verdict:<7} {what:<42} {is:5.2}, at most {most:4.2} ({note})").ok();
}
