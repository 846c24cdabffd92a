//! Weir's agent and CLI. State flows one way: source → desired state → + health → eligibility →
//! rings → reconcile → BPF maps (docs/architecture.md).
#![deny(unsafe_code)]

pub mod agent;
mod assembly;
mod background;
pub mod balance;
pub mod cli;
pub mod clock;
mod config;
pub mod dataplane;
pub mod doctor;
mod health;
mod heap;
mod metrics;
pub mod model;
pub mod node;
mod overrides;
pub mod serve;
mod source;
pub mod state;
mod supervisor;
pub mod view;
