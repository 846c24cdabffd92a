//! What the suites and the demo stand on: a bed of network namespaces with real servers, the agent,
//! and clients that count.

pub mod agent;
pub mod bed;
pub mod capture;
pub mod churn;
pub mod config;
pub mod crowd;
pub mod deluge;
pub mod document;
pub mod echo;
pub mod flood;
pub mod guest;
pub mod http;
pub mod leftovers;
pub mod live;
pub mod load;
pub mod machine;
pub mod model;
pub mod netns;
pub mod process;
pub mod reckoning;
pub mod segments;
pub mod servers;
pub mod slots;
pub mod supervisor;
pub mod tables;
pub mod tally;
pub mod tools;
mod wiring;
pub mod witness;

/// Whether the long form of a run is wanted: `cargo xtask test --long`.
pub fn is_long() -> bool {
    std::env::var_os("WEIR_LONG").is_some()
}
