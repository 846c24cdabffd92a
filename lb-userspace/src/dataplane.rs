//! The data path as the agent sees it: loading and attaching the programs, reading and writing their maps.

pub mod image;
