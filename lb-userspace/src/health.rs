//! What probes see of the backends: `probe` asks one backend once, `machine` decides from the
//! answers, `runner` keeps the schedule of thousands and publishes what changes.
//!
//! Probes go to the backend's own address in every mode. In `dsr-l2` the traffic goes to the VIP at
//! the backend's MAC address, and an ordinary socket can't do that without a route or rule of the
//! node for each backend: there a probe says that the server answers, not that it holds the VIP.

pub mod machine;
pub mod probe;
pub mod runner;

pub use machine::{HealthChange, HealthView, Machine, Observation, Thresholds};
pub use probe::{FailureKind, Outcome, probe};
pub use runner::{HealthEvent, HealthViews, Options, ProbeTarget, Runner};
