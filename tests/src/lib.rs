//! What the suites and the demo stand on: a bed of network namespaces with real servers, the agent, and clients that count.

pub mod agent;
pub mod bed;
pub mod config;
pub mod flood;
pub mod http;
pub mod leftovers;
pub mod load;
pub mod netns;
pub mod process;
pub mod servers;
pub mod tally;
pub mod tools;
mod wiring;
pub mod witness;
