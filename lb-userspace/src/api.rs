//! The admin API: JSON over HTTP on a unix socket, and metrics over TCP (docs/api.md).

pub mod handle;
pub mod types;
