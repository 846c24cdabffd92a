//! The agent's part of a ring transition: it settles slots whose owner has changed, after the
//! settle time, and collects exception entries that are no longer needed. docs/architecture.md
//! lists the steps and why they are safe while the programs run.

pub mod census;
pub(crate) mod change;
pub mod clock;
mod family;
mod judge;
pub mod scope;
pub mod settler;
pub(crate) mod syns;
