//! The loaded program and the agent's own code against the promise of `weir_tests::model`, by
//! random sequences; and beside each other, each on a core of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

mod agent;
#[path = "../packet/bed.rs"]
#[allow(dead_code, reason = "the packet suite uses all of it")]
mod bed;
#[path = "../packet/frames.rs"]
#[allow(dead_code, reason = "the packet suite uses all of it")]
mod frames;
mod kernel;
#[path = "../dataplane/sandbox.rs"]
#[allow(dead_code, reason = "the dataplane suite uses all of it")]
mod sandbox;
mod tables;

mod promise;
mod race;
