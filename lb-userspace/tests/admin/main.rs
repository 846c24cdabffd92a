//! The admin API and the CLI, through their real sockets and the real binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent;
mod cli;
mod http;
mod log;
