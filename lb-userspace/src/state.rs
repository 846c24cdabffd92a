//! Basic types that all stages of the agent share.

mod names;

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

pub use self::names::{NotAServiceName, ServiceName, ServiceSelector};

/// A backend of a service: the same address and port in two services are two backends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BackendId {
    pub service: ServiceName,
    pub address: SocketAddr,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.address)
    }
}

/// The state that an administrator or the orchestrator has set for a backend.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    #[default]
    Active,
    /// No new flows; existing ones go on.
    Draining,
    /// No flows at all: existing ones end at once.
    Disabled,
}

impl AdminState {
    pub const fn name(self) -> &'static str {
        match self {
            AdminState::Active => "active",
            AdminState::Draining => "draining",
            AdminState::Disabled => "disabled",
        }
    }
}

/// A backend's health according to its probes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No verdict yet, or no probes.
    #[default]
    Unknown,
    Up,
    Down,
    /// Down, and nothing answers at all.
    Dead,
}

impl Health {
    /// Whether the backend has failed its probes: `Down` or `Dead`.
    pub const fn is_down(self) -> bool {
        match self {
            Health::Unknown | Health::Up => false,
            Health::Down | Health::Dead => true,
        }
    }
}

impl Health {
    pub const fn name(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
            Health::Dead => "dead",
        }
    }
}

/// Where a setting of a backend came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    #[default]
    File,
    Cli,
}

impl Origin {
    pub const fn name(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::Cli => "cli",
        }
    }
}
