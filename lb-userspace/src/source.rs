//! Where the desired services come from: a file, and any number of other sources.

pub(crate) mod file;
pub(crate) mod merge;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::sync::watch;

use crate::{model::Service, state::ServiceName};

/// What a source other than the file says of its services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    pub knowledge: Knowledge,
    /// Since when the source can't be reached, and why. What it said last stays in force.
    pub failing: Option<Failing>,
    /// Names are unique.
    pub services: Arc<Vec<Service>>,
    /// Services that the source knows but can't describe, and why: a bad annotation, say.
    pub refused: BTreeMap<ServiceName, String>,
}

/// What is known of a source's services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Knowledge {
    /// Nothing: whatever the maps hold for services of nobody else may be its own, and stays.
    #[default]
    Nothing,
    /// What it said before this start; the maps may hold later ones as well, which stay.
    Remembered,
    /// All of its services, since this start.
    Synced,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failing {
    pub since: SystemTime,
    pub error: String,
}

/// What each source says, by its name.
pub type Heard = BTreeMap<&'static str, Arc<Said>>;

/// Where the sources publish what they say.
#[derive(Clone, Debug)]
pub struct Board(Arc<watch::Sender<Heard>>);

impl Board {
    /// `remembered` is what each source said before this start, if that is known.
    pub fn new(remembered: impl IntoIterator<Item = (&'static str, Option<Vec<Service>>)>) -> Self {
        let said = |services: Option<Vec<Service>>| Said {
            knowledge: if services.is_some() { Knowledge::Remembered } else { Knowledge::Nothing },
            services: Arc::new(services.unwrap_or_default()),
            ..Said::default()
        };
        let heard = remembered.into_iter().map(|(source, services)| (source, Arc::new(said(services))));
        Self(Arc::new(watch::Sender::new(heard.collect())))
    }

    pub fn heard(&self) -> watch::Receiver<Heard> {
        self.0.subscribe()
    }

    /// Changes what a source says.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the sources beside the file, of which there is none yet"))]
    pub fn update(&self, source: &'static str, change: impl FnOnce(&mut Said)) {
        self.0.send_if_modified(|heard| {
            let said = heard.entry(source).or_default();
            let before = said.clone();
            change(Arc::make_mut(said));
            *said != before
        });
    }
}

/// Whether some source has not told all its services yet: what the state directory remembers may be
/// older than what the maps hold.
pub fn holds(heard: &Heard) -> bool {
    heard.values().any(|said| said.knowledge != Knowledge::Synced)
}
