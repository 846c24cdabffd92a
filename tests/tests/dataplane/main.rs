//! The agent's kernel side, on a real kernel: pins, hooks, maps, neighbours. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

mod announcements;
mod by_hand;
mod doctor;
mod flows;
mod handover;
mod hooks;
mod limits;
mod maps;
mod migrate;
mod network;
mod sandbox;
mod settle;
