//! The agent's own process, under the names that all exporters use.

use std::{fmt, fs};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeValLike,
};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::collect::series::{counters, gauges};

/// Reads /proc/self at each scrape; values that can't be read are left out.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let cpu = cpu_seconds().map(|seconds| (Vec::new(), seconds));
        counters(&mut encoder, "process_cpu_seconds", "CPU time of the agent, user and system.", cpu)?;
        let values = [
            ("process_resident_memory_bytes", "Memory of the agent that is resident.", status_bytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Address space of the agent.", status_bytes("VmSize:")),
            ("process_open_fds", "Files that the agent has open.", open_files()),
            ("process_max_fds", "Files that the agent may have open.", max_files()),
            ("process_start_time_seconds", "When the agent was started, in seconds since 1970.", start_time()),
        ];
        for (name, help, value) in values {
            gauges(&mut encoder, name, help, value.map(|value| (Vec::new(), value)))?;
        }
        Ok(())
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Some(micros as f64 / 1e6)
}

/// A line of /proc/self/status that is given in kB.
fn status_bytes(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?;
    Some(kibibytes.parse::<f64>().ok()? * 1024.0)
}

fn open_files() -> Option<f64> {
    // The directory itself is open while it is read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn max_files() -> Option<f64> {
    Some(getrlimit(Resource::RLIMIT_NOFILE).ok()?.0 as f64)
}

/// USER_HZ, the unit of times in /proc: part of the kernel's ABI on every architecture that Weir
/// runs on.
const TICKS_PER_SECOND: f64 = 100.0;

fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // proc(5): the start time is field 22. Field 2, in parentheses, may contain any characters.
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = booted.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted + ticks / TICKS_PER_SECOND)
}
