//! The data path as the agent sees it: loading and attaching the programs, reading and writing
//! their maps.

mod arena;
pub mod bpffs;
pub mod cleanup;
mod clsact;
pub mod data_path;
pub mod hooks;
pub mod image;
pub mod load;
pub mod maps;
pub mod migrate;
pub(crate) mod pins;
pub mod plan;
pub mod programmed;
mod programs;
mod raw;
mod release;
pub mod rings;
pub mod settle;
pub mod sizes;
pub mod stats;
pub mod tables;
pub(crate) mod trace;
