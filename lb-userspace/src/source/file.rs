//! Follows a configuration file: by events of the directories on its path, by a slow poll in case
//! there are no events, and on demand.

mod trail;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::trail::Trail;
use crate::{
    config::{self, ConfigError},
    model::Config,
};

/// The contents of the file at one moment.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub result: Result<Config, ConfigError>,
    /// SHA-256 of the text in hex; `None` if it could not be read.
    pub digest: Option<String>,
}

impl Loaded {
    /// Whether `self` and `other` have the same file content.
    pub fn is_same(&self, other: &Loaded) -> bool {
        let errors = |loaded: &Loaded| loaded.result.as_ref().err().map(ConfigError::messages);
        match (&self.digest, &other.digest) {
            (Some(one), Some(other)) => one == other,
            // Both unreadable, for the same reason.
            (None, None) => errors(self) == errors(other),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

/// Handle to a running source.
#[derive(Clone, Debug)]
pub struct FileSource {
    loaded: watch::Receiver<Arc<Loaded>>,
    reloads: mpsc::Sender<oneshot::Sender<Arc<Loaded>>>,
}

/// The source has stopped because the agent is stopping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the configuration file is no longer followed: the agent is stopping")]
pub struct Stopped;

/// How long the source waits before it reads the file.
#[derive(Clone, Copy, Debug)]
struct FollowPace {
    /// The file is read after this long without events, because writers need not be atomic.
    quiet: Duration,
    /// The file is read at the latest this long after the first event.
    patience: Duration,
    /// The file is read and compared this often even without events: network file systems have
    /// none.
    poll: Duration,
}

const PACE: FollowPace =
    FollowPace { quiet: Duration::from_millis(100), patience: Duration::from_secs(1), poll: Duration::from_secs(5) };

impl FileSource {
    /// Reads the file, and follows it until `shutdown` is cancelled.
    pub async fn start(path: &Path, shutdown: CancellationToken) -> (Self, JoinHandle<()>) {
        Self::start_at(path, shutdown, PACE).await
    }

    async fn start_at(path: &Path, shutdown: CancellationToken, pace: FollowPace) -> (Self, JoinHandle<()>) {
        let mut watcher = FileWatcher::new(path);
        // Watch before reading, so that no change in between is missed.
        watcher.follow();
        let first = read(path.to_owned(), None).await;
        let (publish, loaded) = watch::channel(first);
        let (reloads, requests) = mpsc::channel(16);
        let follower = Follower { path: path.to_owned(), pace, watcher, publish, requests, shutdown };
        (Self { loaded, reloads }, tokio::spawn(follower.run()))
    }

    /// The contents read last; the value changes whenever the file's content does.
    pub fn loaded(&self) -> watch::Receiver<Arc<Loaded>> {
        self.loaded.clone()
    }

    /// Reads the file now, whether it has changed or not.
    pub async fn reload(&self) -> Result<Arc<Loaded>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.reloads.send(answer).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

struct Follower {
    path: PathBuf,
    pace: FollowPace,
    watcher: FileWatcher,
    publish: watch::Sender<Arc<Loaded>>,
    requests: mpsc::Receiver<oneshot::Sender<Arc<Loaded>>>,
    shutdown: CancellationToken,
}

impl Follower {
    async fn run(mut self) {
        let mut polls = interval_at(Instant::now() + self.pace.poll, self.pace.poll);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        loop {
            let answer = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                // If all senders are gone, this branch is disabled, and the file is still followed.
                Some(answer) = self.requests.recv() => Some(answer),
                () = self.watcher.changed.notified() => {
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        Some(answer) = self.requests.recv() => Some(answer),
                        () = settle(&self.watcher.changed, self.pace) => None,
                    }
                }
                _ = polls.tick() => None,
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                loaded = self.refresh() => {
                    // The task that requested the reload may have gone away.
                    if let Some(Err(_)) = answer.map(|answer| answer.send(loaded)) {
                        warn!(file = %self.path.display(), "the task that asked for the reload has ended");
                    }
                }
            }
        }
    }

    /// Reads the file, and publishes its contents if they have changed.
    async fn refresh(&mut self) -> Arc<Loaded> {
        self.watcher.follow();
        let before = self.publish.borrow().clone();
        let now = read(self.path.clone(), Some(before.clone())).await;
        if before.is_same(&now) {
            return before;
        }
        self.publish.send_replace(Arc::clone(&now));
        now
    }
}

/// Waits until there are no more events, but at most `pace.patience`.
async fn settle(changed: &Notify, pace: FollowPace) {
    let deadline = Instant::now() + pace.patience;
    while Instant::now() < deadline {
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = sleep(pace.quiet) => return,
            () = sleep_until(deadline) => return,
        }
    }
}

/// Reads the file. Its text is parsed only if it differs from that of `before`.
async fn read(path: PathBuf, before: Option<Arc<Loaded>>) -> Arc<Loaded> {
    let unreadable = |path: &Path, error| Loaded { result: Err(ConfigError::unreadable(path, error)), digest: None };
    let reading = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || match config::text(&path) {
            Ok(text) => {
                let digest = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
                let digest: Option<String> = Some(digest);
                match before.filter(|before| before.digest == digest) {
                    Some(before) => before,
                    None => Loaded { result: config::parse(&text, &path).map_err(ConfigError::from), digest }.into(),
                }
            }
            Err(error) => Loaded { result: Err(error), digest: None }.into(),
        })
    };
    reading.await.unwrap_or_else(|error| unreadable(&path, std::io::Error::other(error)).into())
}

/// Watches the directories on the way to a file.
struct FileWatcher {
    path: PathBuf,
    /// `None` if the kernel provides no watches: then the file is only polled.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// The paths whose events matter.
    names: Arc<RwLock<BTreeSet<PathBuf>>>,
    changed: Arc<Notify>,
}

impl FileWatcher {
    fn new(path: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let names = Arc::new(RwLock::new(BTreeSet::new()));
        let watcher = notify::recommended_watcher({
            let (changed, names) = (Arc::clone(&changed), Arc::clone(&names));
            move |event: notify::Result<notify::Event>| {
                let names = names.read().unwrap_or_else(PoisonError::into_inner);
                if event.is_ok_and(|event| matters(&event, &names)) {
                    changed.notify_one();
                }
            }
        })
        .inspect_err(|error| {
            warn!(file = %path.display(), %error, poll_seconds = PACE.poll.as_secs(), "no events for \
            the configuration file; polling instead")
        })
        .ok();
        Self { path: path.to_owned(), watcher, watched: BTreeSet::new(), names, changed }
    }

    /// Watches the directories currently on the way to the file; a recreated directory needs a new
    /// watch.
    fn follow(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let trail = Trail::of(&self.path);
        for left in self.watched.difference(&trail.directories) {
            // The directory may already be gone.
            if let Err(error) = watcher.unwatch(left) {
                tracing::debug!(directory = %left.display(), %error, "no longer watched");
            }
        }
        self.watched = trail
            .directories
            .into_iter()
            .filter(|directory| match watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(directory = %directory.display(), %error, "can't be watched; polling instead");
                    false
                }
            })
            .collect();
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = trail.names;
    }
}

/// Whether `event` may mean that the file has changed. Reads raise events too; ignore them to avoid
/// a reload loop.
fn matters(event: &notify::Event, names: &BTreeSet<PathBuf>) -> bool {
    let is_read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    event.need_rescan() || (!is_read && event.paths.iter().any(|path| names.contains(path)))
}

#[cfg(test)]
mod tests;
