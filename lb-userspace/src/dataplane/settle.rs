//! The ring in transition, the agent's side: slots that changed owner settle after a time, and
//! entries that nobody needs any more are collected. docs/architecture.md has the steps and why
//! they are safe beside a running program.

pub mod census;
pub mod change;
pub mod clock;
mod family;
pub mod judge;
pub mod scope;
pub mod settler;
pub mod syns;
