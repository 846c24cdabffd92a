//! What can be done to a backend, and what it then is.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::config;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hand {
    Cli,
    File,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Drain(Hand),
    Undrain(Hand),
    Weight(Hand, u32),
    /// Takes the weight that the CLI set away.
    FileWeight,
    Remove,
    Add,
    /// Its health page, and that of the same server's other backend, says 503.
    Sick,
    Well,
}

impl Change {
    pub(super) const fn hand(self) -> Hand {
        match self {
            Change::Drain(hand) | Change::Undrain(hand) | Change::Weight(hand, _) => hand,
            Change::Remove | Change::Add => Hand::File,
            Change::FileWeight | Change::Sick | Change::Well => Hand::Cli,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Drain(hand) => write!(f, "drained by {hand}"),
            Change::Undrain(hand) => write!(f, "active again by {hand}"),
            Change::Weight(hand, weight) => write!(f, "weight {weight} by {hand}"),
            Change::FileWeight => write!(f, "the file's weight again"),
            Change::Remove => write!(f, "removed from the file"),
            Change::Add => write!(f, "added to the file"),
            Change::Sick => write!(f, "health page 503"),
            Change::Well => write!(f, "health page 200"),
        }
    }
}

impl fmt::Display for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hand::Cli => "the CLI",
            Hand::File => "the file",
        })
    }
}

/// What has been asked for of one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backend {
    /// Its server's.
    pub(super) number: u16,
    is_declared: bool,
    file_drain: bool,
    file_weight: u32,
    cli_drain: bool,
    cli_weight: Option<u32>,
    is_well: bool,
    /// Since when it may have been found up; `None`: from the beginning.
    called_at: Option<Instant>,
}

/// A backend that was added or became well is found up within this time.
const FOUND_UP: Duration = Duration::from_secs(3);

impl Backend {
    pub(super) const fn new(number: u16) -> Self {
        Self {
            number,
            is_declared: true,
            file_drain: false,
            file_weight: 1,
            cli_drain: false,
            cli_weight: None,
            is_well: true,
            called_at: None,
        }
    }

    /// What a person could do to it now. What takes connections away is as likely as what brings it
    /// back.
    pub(super) fn options(&self, random: &mut fastrand::Rng) -> Vec<Change> {
        let hand = if random.bool() { Hand::Cli } else { Hand::File };
        let weight = random.u32(0..=5);
        if !self.is_declared {
            return vec![Change::Add];
        }
        let mut options = vec![Change::Weight(hand, weight)];
        match (self.file_drain, self.cli_drain) {
            (false, false) => options.extend([Change::Drain(Hand::Cli), Change::Drain(Hand::File), Change::Remove]),
            (true, false) => options.extend([Change::Undrain(Hand::File), Change::Undrain(Hand::File)]),
            (false, true) => options.extend([Change::Undrain(Hand::Cli), Change::Undrain(Hand::Cli), Change::Remove]),
            (true, true) => options.push(Change::Undrain(Hand::File)),
        }
        if self.cli_weight.is_some() {
            options.push(Change::FileWeight);
        }
        options.push(if self.is_well { Change::Sick } else { Change::Well });
        options
    }

    pub(super) fn take(&mut self, change: Change, now: Instant) {
        match change {
            Change::Drain(Hand::Cli) => self.cli_drain = true,
            Change::Drain(Hand::File) => self.file_drain = true,
            Change::Undrain(Hand::Cli) => self.cli_drain = false,
            Change::Undrain(Hand::File) => self.file_drain = false,
            Change::Weight(Hand::Cli, weight) => self.cli_weight = Some(weight),
            Change::Weight(Hand::File, weight) => self.file_weight = weight,
            Change::FileWeight => self.cli_weight = None,
            Change::Remove => self.is_declared = false,
            Change::Add => {
                *self = Self { is_well: self.is_well, called_at: Some(now), ..Self::new(self.number) };
            }
            Change::Sick => self.is_well = false,
            Change::Well => {
                self.is_well = true;
                self.called_at = Some(now);
            }
        }
    }

    /// It keeps its connections for the drain's time-out.
    pub(super) const fn is_draining(&self) -> bool {
        !self.is_declared || self.file_drain || self.cli_drain
    }

    /// It surely takes new connections.
    pub(super) fn serves(&self, now: Instant) -> bool {
        let is_found = self.called_at.is_none_or(|at| now.saturating_duration_since(at) > FOUND_UP);
        !self.is_draining() && self.is_well && is_found && self.cli_weight.unwrap_or(self.file_weight) > 0
    }

    pub(super) const fn has_file_weight(&self) -> bool {
        self.is_declared && self.file_weight > 0
    }

    /// Its line in the file; `None` if it has none.
    pub(super) fn in_file(&self, address: SocketAddr) -> Option<config::Backend> {
        let state = if self.file_drain { "draining" } else { "active" };
        self.is_declared.then_some(config::Backend { address, weight: self.file_weight, state, tunnel: None })
    }
}
