//! The agent's kernel side, on a real kernel: pins, hooks, maps, neighbours. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

mod doctor;
mod flows;
mod hooks;
mod maps;
mod network;
mod sandbox;
