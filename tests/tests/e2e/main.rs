//! What users are promised, with real servers and clients, counted in connections. Needs root; one bed at a time.

mod agent;
mod bed;
mod modes;
mod scene;
mod stack;
mod traffic;
mod volume;
