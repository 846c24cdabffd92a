//! The configuration file: its model, how it is read with every mistake named, its example and its JSON schema.

pub mod model;

pub use model::Config;
