//! What a packet costs. `packet`: by BPF_PROG_TEST_RUN through a wrapper, beside a floor.
//! `forward`: live frames, beside a bare redirect. `control`: what the agent costs, and how fast it
//! follows. Not a test: it judges nothing, and other work on the machine shows in it; what counts
//! are ratios of one run. docs/performance.md says how it measures.

mod cases;
mod control;
mod forward;
mod frames;
mod network;
mod packet;
mod report;
mod setup;
mod stage;
mod talk;
mod turn;
mod wrapper;

use anyhow::{Result, bail};
use clap::Parser;

/// Measures Weir's programs, and its agent. Needs root.
#[derive(Parser)]
enum Command {
    /// Nanoseconds a packet, beside a floor that only encapsulates.
    Packet(packet::Arguments),
    /// Live frames through veth, Weir against a program that only redirects.
    Forward(forward::Arguments),
    /// The agent with thousands of backends: times, processor time and memory, beside targets.
    Control(control::Arguments),
}

fn main() -> Result<()> {
    let command = Command::parse();
    if !nix::unistd::geteuid().is_root() {
        bail!("bench makes a network namespace and loads BPF programs: run it as root");
    }
    match command {
        Command::Packet(arguments) => packet::run(&arguments),
        Command::Forward(arguments) => forward::run(&arguments),
        Command::Control(arguments) => control::run(&arguments),
    }
}
