//! Where the desired services come from: a file, and any number of other sources.

pub(crate) mod file;
pub(crate) mod merge;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::sync::watch;

use crate::{model::Service, state::ServiceName};

/// The services that a source other than the file has published.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    pub knowledge: Knowledge,
    /// Since when the source can't be reached, and why. The services that it published last stay in
    /// force.
    pub failing: Option<Failing>,
    /// Names are unique.
    pub services: Arc<Vec<Service>>,
    /// Services that the source knows but can't describe, and why: because of a bad annotation, for
    /// example.
    pub refused: BTreeMap<ServiceName, String>,
}

/// How much is known of a source's services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Knowledge {
    /// Nothing yet. Entries in the maps that no source claims may belong to this source, so they
    /// stay.
    #[default]
    Nothing,
    /// Only the services that were saved before this start. The maps may have entries of newer
    /// ones, so entries that no source claims stay.
    Remembered,
    /// All of its services, since this start.
    Synced,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failing {
    pub since: SystemTime,
    pub error: String,
}

/// What each source has published, by the source's name.
pub type Heard = BTreeMap<&'static str, Arc<Said>>;

/// The board on which the sources publish their services.
#[derive(Clone, Debug)]
pub struct Board(Arc<watch::Sender<Heard>>);

impl Board {
    /// `remembered` are the services of each source that were saved before this start; `None` if
    /// they are not known.
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

    /// Changes what a source has published.
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

/// Whether some source has not listed all its services yet, so that entries in the maps that no
/// source claims must stay.
pub fn holds(heard: &Heard) -> bool {
    heard.values().any(|said| said.knowledge != Knowledge::Synced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Service {
        let text = format!(
            "version: 1\ninterfaces: [eth0]\nservices: [{{ name: {name}, vips: [192.0.2.1], port: 80, backends: [] \
            }}]\n"
        );
        crate::config::parse(&text, std::path::Path::new("weir.yaml")).unwrap().services.remove(0)
    }

    #[test]
    fn until_every_source_has_told_all_its_services_nothing_of_nobodys_may_go() {
        let board = Board::new([("known", Some(vec![service("web")])), ("new", None)]);
        let heard = board.heard();
        assert_eq!(heard.borrow()["known"].knowledge, Knowledge::Remembered);
        assert_eq!(heard.borrow()["known"].services.len(), 1, "what it said before this start is still wanted");
        assert!(holds(&heard.borrow()));
        board.update("known", |said| said.knowledge = Knowledge::Synced);
        assert!(holds(&heard.borrow()), "the other one has told nothing yet");
        board.update("new", |said| said.knowledge = Knowledge::Synced);
        assert!(!holds(&heard.borrow()));
        let error = "the API server does not answer".to_owned();
        board.update("known", |said| said.failing = Some(Failing { since: SystemTime::now(), error }));
        assert!(!holds(&heard.borrow()), "a source that can't be reached has still told what it had");
        assert_eq!(heard.borrow()["known"].services.len(), 1, "and that stays in force");
        assert!(!holds(&Heard::new()), "a node with a file alone waits for nobody");
    }

    #[test]
    fn only_what_differs_wakes_who_listens() {
        let board = Board::new([("one", None)]);
        let mut heard = board.heard();
        heard.mark_unchanged();
        board.update("one", |said| said.services = Arc::default());
        assert!(!heard.has_changed().unwrap());
        board.update("one", |said| said.services = Arc::new(vec![service("web")]));
        assert!(heard.has_changed().unwrap());
    }
}
