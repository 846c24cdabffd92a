//! Health checks of the backends: `probe` probes one backend once, `machine` derives a backend's
//! health from the results, `runner` schedules the probes of thousands of backends and publishes
//! changes of their health.
//!
//! Probes go to the backend's own address in every mode. In `dsr-l2` the traffic goes to the VIP at
//! the backend's MAC address, and an ordinary socket can't do that without a route or rule on the
//! node for each backend. In this mode a successful probe shows that the server answers, not that
//! it has the VIP.

mod machine;
mod probe;
mod runner;

pub use machine::HealthView;
pub use runner::{HealthEvent, HealthViews, Options, ProbeTarget, Runner};
