//! Weir's agent and CLI. State flows one way: source → desired state → + health → eligibility →
//! rings → reconcile → BPF maps (docs/architecture.md).
#![deny(unsafe_code)]

pub mod agent;
pub mod assembly;
mod background;
pub mod balance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod doctor;
pub mod health;
mod heap;
pub mod metrics;
pub mod model;
pub mod node;
pub mod overrides;
pub mod serve;
pub mod source;
pub mod state;
mod supervisor;
pub mod view;
