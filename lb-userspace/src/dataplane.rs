//! The data path as the agent sees it: loading and attaching the programs, reading and writing
//! their maps.

pub mod arena;
pub mod attach;
mod clsact;
pub mod image;
pub mod load;
pub mod maps;
pub mod migrate;
pub mod pins;
pub mod plan;
mod programs;
mod raw;
pub mod rings;
pub mod settle;
pub mod stats;
pub mod tables;
pub mod trace;
