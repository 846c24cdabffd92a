//! Keeps what the sources said last in the state directory, so that a start without them serves it
//! under its names.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Heard, Knowledge};
use crate::{model::Service, overrides::StateDir};

/// Minimum time between two writes: there may be thousands of services, and changes of some of them
/// all the time.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes what has changed until `shutdown` is cancelled, and once more then.
pub async fn run(state_dir: StateDir, mut heard: watch::Receiver<Heard>, shutdown: CancellationToken) {
    let mut kept: BTreeMap<&'static str, Arc<Vec<Service>>> = BTreeMap::new();
    let mut is_stopping = false;
    while !is_stopping {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => is_stopping = true,
            // Without any source there is nothing to wait for but the end.
            Ok(()) = heard.changed() => {}
        }
        let news: Vec<(&'static str, Arc<Vec<Service>>)> = {
            let heard = heard.borrow_and_update();
            let synced = heard.iter().filter(|(_, said)| said.knowledge == Knowledge::Synced);
            let is_new = |source: &&'static str, services: &Arc<Vec<Service>>| kept.get(source) != Some(services);
            synced
                .filter(|(source, said)| is_new(source, &said.services))
                .map(|(source, said)| (*source, said.services.clone()))
                .collect()
        };
        for (source, services) in news {
            let (dir, writing) = (state_dir.clone(), services.clone());
            match spawn_blocking(move || dir.save_said(source, &writing)).await {
                Ok(Ok(())) => drop(kept.insert(source, services)),
                Ok(Err(error)) => {
                    warn!(source, %error, "cannot keep what the source says: a restart without it would not know its services")
                }
                Err(error) => warn!(source, %error, "the task that keeps what the source says has failed"),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::{Board, Failing, holds};

    const OTHER: &str = "other";

    fn services() -> Vec<Service> {
        let text = "version: 1\ninterfaces: [eth0]\nservices: [{ name: web, vips: [192.0.2.1], port: 80, health: { http: { path: /ready } }, backends: [{ address: 10.0.0.1, port: 80 }] }]\n";
        crate::config::parse(text, Path::new("weir.yaml")).unwrap().services
    }

    #[tokio::test]
    async fn task_goes_on_without_any_source_until_it_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::new([]);
        let shutdown = CancellationToken::new();
        let state_dir = StateDir::open(folder.path()).unwrap();
        let keeper = tokio::spawn(run(state_dir, board.heard(), shutdown.clone()));
        drop(board);
        sleep(Duration::from_millis(50)).await;
        assert!(!keeper.is_finished());
        shutdown.cancel();
        keeper.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_source_said_last_is_there_after_a_restart_and_only_once_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(folder.path()).unwrap();
        let remembered = || state_dir.said(OTHER).unwrap().0;
        assert_eq!(remembered(), None);
        let board = Board::new([(OTHER, remembered())]);
        assert!(holds(&board.heard().borrow()));
        let shutdown = CancellationToken::new();
        let keeper = tokio::spawn(run(state_dir.clone(), board.heard(), shutdown.clone()));
        let failing = Failing { since: std::time::SystemTime::now(), error: "connection refused".to_owned() };
        board.update(OTHER, |said| said.failing = Some(failing));
        assert!(holds(&board.heard().borrow()), "it has told nothing");
        board.update(OTHER, |said| {
            (said.knowledge, said.services, said.failing) = (Knowledge::Synced, Arc::new(services()), None);
        });
        assert!(!holds(&board.heard().borrow()));
        shutdown.cancel();
        keeper.await.unwrap();
        assert_eq!(remembered(), Some(services()));

        let again = Board::new([(OTHER, remembered())]);
        let said = again.heard().borrow()[OTHER].clone();
        assert_eq!((said.knowledge, &*said.services), (Knowledge::Remembered, &services()));
        assert!(holds(&again.heard().borrow()), "the maps may hold a later one");

        std::fs::write(folder.path().join("services-other.json"), "{").unwrap();
        let (services, damaged) = state_dir.said(OTHER).unwrap();
        assert!(services.is_none() && damaged.is_some_and(|damaged| damaged.to_string().contains("without names")));
        assert!(state_dir.said(OTHER).unwrap().1.is_none(), "it was put aside");
    }
}
