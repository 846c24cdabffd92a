//! The documents that people and programs see: what the API answers, what the CLI prints, what the
//! metrics count (docs/api.md).

pub(crate) mod ready;
pub mod trace;
pub mod types;
