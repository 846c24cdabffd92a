//! The data path as the agent sees it: loading and attaching the programs, reading and writing their maps.

pub mod attach;
pub mod image;
pub mod interfaces;
pub mod load;
pub mod maps;
pub mod pins;
mod raw;
pub mod rings;
