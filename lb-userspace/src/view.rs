//! The documents that people and programs see: the API's answers, which the CLI prints and the
//! metrics are made from (docs/api.md).

pub(crate) mod ready;
pub mod trace;
pub mod types;
