//! What was measured, beside what it should be, and on which machine.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::size::Size;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    machine: Host,
    /// The binary that was measured.
    binary: String,
    size: Size,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Host {
    cpu: String,
    cores: usize,
    kernel: String,
    /// The load average of the minute before the bench, which other work on the machine makes.
    load: f64,
}

#[derive(Serialize)]
struct Figure {
    /// For programs.
    name: String,
    /// For people.
    what: String,
    value: f64,
    unit: &'static str,
    /// At the most; `null` where nothing was promised.
    target: Option<f64>,
    met: Option<bool>,
}

/// Which of many values is shown: the smallest that so large a share of all does not exceed.
#[derive(Clone, Copy)]
pub struct Rank {
    suffix: &'static str,
    label: &'static str,
    share: f64,
}

pub const MEDIAN: Rank = Rank { suffix: "p50", label: "median", share: 0.5 };
pub const P99: Rank = Rank { suffix: "p99", label: "p99", share: 0.99 };
pub const MOST: Rank = Rank { suffix: "max", label: "most", share: 1.0 };

impl Report {
    pub fn new(size: Size, binary: &std::path::Path) -> Result<Self> {
        Ok(Self { machine: Host::this()?, binary: binary.display().to_string(), size, figures: Vec::new() })
    }

    /// One figure; `what` says it to people.
    pub fn add(&mut self, name: &str, what: &str, value: f64, unit: &'static str, target: Option<f64>) {
        let value = (value * 1000.0).round() / 1000.0;
        let met = target.map(|target| value <= target);
        eprintln!("{what}: {}", shown(value, unit));
        self.figures.push(Figure { name: name.to_owned(), what: what.to_owned(), value, unit, target, met });
    }

    /// Some times, in milliseconds, by rank; each rank may have a target.
    pub fn add_times(&mut self, name: &str, what: &str, times: &[Duration], ranks: &[(Rank, Option<f64>)]) {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        for (Rank { suffix, label, share }, target) in ranks {
            let value = percentile(&sorted, *share).unwrap_or(f64::NAN);
            let what = format!("{what}, {label} of {}", sorted.len());
            self.add(&format!("{name}_{suffix}"), &what, value, "ms", *target);
        }
    }

    pub fn heading(&self) -> String {
        let Host { cpu, cores, kernel, load } = &self.machine;
        format!("{cpu}, {cores} cores, Linux {kernel}, load {load:.2} before\n{}\n{}", self.binary, self.size)
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["what", "measured", "target", ""]);
        for Figure { what, value, unit, target, met, .. } in &self.figures {
            table.add_row([
                what.clone(),
                shown(*value, unit),
                target.map_or_else(String::new, |target| format!("{target} {unit}")),
                met.map_or("", |met| if met { "met" } else { "NOT MET" }).to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1).take(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl Host {
    fn this() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("can't read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let loads = read("/proc/loadavg")?;
        Ok(Self {
            // Only some architectures have the line.
            cpu: cpu.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().context("can't count the cores")?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: loads.split_whitespace().next().context("an empty loadavg")?.parse()?,
        })
    }
}

fn shown(value: f64, unit: &str) -> String {
    format!("{value:.precision$} {unit}", precision = if value < 100.0 { 2 } else { 0 })
}

fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentile_is_the_value_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&values, share)), [Some(100.0), Some(198.0), Some(200.0)]);
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
