//! The configuration file: reading it with every mistake reported, its example and its JSON schema.

mod address;
mod check;
mod document;
mod example;
mod fields;
mod health;
mod limits;
mod problem;
mod range;
mod schema;
mod service;
mod tunnel;
mod yaml;

use std::{io, path::Path};

pub use example::example;
pub use problem::{ConfigError, Problems};
pub use schema::schema;

use crate::model::Config;
use fields::DocumentReader;

/// Reads a configuration; `file` is its name in messages.
pub fn parse(text: &str, file: &Path) -> Result<Config, Problems> {
    let reader = DocumentReader::new(file);
    let config = match yaml::parse(text) {
        Ok(root) => document::read(&reader.root(&root)),
        Err(error) => {
            reader.problem(error.at, "", error.reason);
            None
        }
    };
    reader.finish(config)
}

/// Reads the file at `path`.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    Ok(parse(&text(path)?, path)?)
}

/// The text of the file at `path`.
pub(crate) fn text(path: &Path) -> Result<String, ConfigError> {
    let bytes = std::fs::read(path).map_err(|error| ConfigError::unreadable(path, error))?;
    String::from_utf8(bytes)
        .map_err(|error| ConfigError::unreadable(path, io::Error::new(io::ErrorKind::InvalidData, error)))
}

#[cfg(test)]
mod tests;
