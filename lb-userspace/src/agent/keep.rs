//! Saves what is served of each source in the state directory. If the source is away at the next
//! start, its services keep their names. A refused change is not saved.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    passes::{Ended, Passes},
    published::Published,
};
use crate::{
    model::{Config, Service},
    overrides::StateDir,
    source::{Heard, Knowledge, Said},
};

/// Minimum time between two writes: there may be thousands of services, and changes of some of them
/// all the time.
const PAUSE: Duration = Duration::from_secs(5);
/// When a failed write is tried again, if nothing changes before.
const RETRY: Duration = Duration::from_secs(30);

/// Writes changes until `shutdown` is cancelled, and then once more.
pub async fn run(state_dir: StateDir, mut published: watch::Receiver<Arc<Published>>, shutdown: CancellationToken) {
    let mut kept = BTreeMap::new();
    let mut writes = Passes::new(
        state_dir,
        "cannot save the services of a source: a restart while the source is away would lose them; it is tried again",
        "the task that saves the services of the sources has failed: a restart while they are away may lose some",
    );
    let (mut is_stopping, mut is_done) = (false, true);
    while !is_stopping {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => is_stopping = true,
            Ok(()) = published.changed() => {}
            () = sleep(RETRY), if !is_done => {}
        }
        let (config, heard) = {
            let published = published.borrow_and_update();
            (published.desired.config.clone(), published.heard.clone())
        };
        is_done = true;
        for (source, services) in news(&config, &heard, &kept) {
            let writing = services.clone();
            match writes.pass(move |state_dir| state_dir.save_served(source, &writing)).await {
                Ok(Some(())) => drop(kept.insert(source, services)),
                Ok(None) => is_done = false,
                Err(Ended) => return,
            }
        }
        if !is_stopping {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }
}

/// The served services of each source that has told all its services, if they differ from those
/// that were saved last.
fn news(
    config: &Config,
    heard: &Heard,
    kept: &BTreeMap<&'static str, Arc<Vec<Service>>>,
) -> Vec<(&'static str, Arc<Vec<Service>>)> {
    let synced = heard.iter().filter(|(_, said)| said.knowledge == Knowledge::Synced);
    let served = synced.map(|(source, said)| (*source, Arc::new(served(config, said))));
    served.filter(|(source, services)| kept.get(source) != Some(services)).collect()
}

/// The services of a source as they are served.
fn served(config: &Config, said: &Said) -> Vec<Service> {
    let names = said.services.iter().map(|service| &service.name).chain(said.refused.keys());
    names.filter_map(|name| config.service(name).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        source::{Board, Failing, holds},
        state::ServiceName,
    };

    const OTHER: &str = "other";

    fn config() -> Config {
        let text = "version: 1\ninterfaces: [eth0]\nservices: [{ name: web, vips: [192.0.2.1], port: 80, health: { \
            http: { path: /ready } }, backends: [{ address: 10.0.0.1, port: 80 }] }]\n";
        crate::config::parse(text, Path::new("weir.yaml")).unwrap()
    }

    #[test]
    fn what_is_served_is_kept_and_not_what_was_refused() {
        let running = config();
        let [web] = <[Service; 1]>::try_from(running.services.clone()).unwrap();
        let changed = Service { ring_size: 31, ..web.clone() };
        let unserved = Service { name: ServiceName::of_file("shop"), ..web.clone() };
        let said =
            Said { knowledge: Knowledge::Synced, services: Arc::new(vec![changed, unserved]), ..Said::default() };
        let heard = Heard::from([(OTHER, Arc::new(said.clone()))]);
        let expected = vec![(OTHER, Arc::new(vec![web]))];
        assert_eq!(news(&running, &heard, &BTreeMap::new()), expected);
        assert_eq!(news(&running, &heard, &expected.into_iter().collect()), []);
        let not_yet = Said { knowledge: Knowledge::Remembered, ..said };
        assert_eq!(news(&running, &Heard::from([(OTHER, Arc::new(not_yet))]), &BTreeMap::new()), []);
    }

    #[test]
    fn what_was_kept_is_remembered_at_the_next_start_until_the_source_has_spoken() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(folder.path()).unwrap();
        let remembered = || state_dir.served(OTHER).unwrap().0;
        let board = Board::new([(OTHER, remembered())]);
        assert_eq!(board.heard().borrow()[OTHER].knowledge, Knowledge::Nothing);
        let failing = Failing { since: std::time::SystemTime::now(), error: "connection refused".to_owned() };
        board.update(OTHER, |said| said.failing = Some(failing));
        assert!(holds(&board.heard().borrow()), "it has told nothing");
        board.update(OTHER, |said| said.knowledge = Knowledge::Synced);
        assert!(!holds(&board.heard().borrow()));

        let services = config().services;
        state_dir.save_served(OTHER, &services).unwrap();
        let again = Board::new([(OTHER, remembered())]);
        let said = again.heard().borrow()[OTHER].clone();
        assert_eq!((said.knowledge, &*said.services), (Knowledge::Remembered, &services));
        assert!(holds(&again.heard().borrow()), "the maps may hold a later one");

        std::fs::write(folder.path().join("services-other.json"), "{").unwrap();
        let (services, damaged) = state_dir.served(OTHER).unwrap();
        assert!(services.is_none() && damaged.is_some_and(|damaged| damaged.to_string().contains("without names")));
        assert!(state_dir.served(OTHER).unwrap().1.is_none(), "it was put aside");
    }
}
