use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;

/// Never polls, so that changes are seen by events alone.
const EVENTS_ALONE: FollowPace = FollowPace {
    quiet: Duration::from_millis(20),
    patience: Duration::from_millis(500),
    poll: Duration::from_secs(3600),
};
const SOON: Duration = Duration::from_secs(10);
/// Long enough to notice events that should not come.
const A_WHILE: Duration = Duration::from_millis(300);

/// A valid configuration, identified by its port.
fn text(port: u16) -> String {
    format!(
        "version: 1\ninterfaces: [eth0]\nservices:\n  - {{ name: web, vips: [192.0.2.1], port: {port}, backends: [{{ \
        address: 10.0.0.1, port: 80 }}] }}\n"
    )
}

struct Bed {
    folder: TempDir,
    source: FileSource,
    loaded: watch::Receiver<Arc<Loaded>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bed {
    async fn start(folder: TempDir, pace: FollowPace) -> Self {
        let stop = CancellationToken::new();
        let (source, task) = FileSource::start_at(&folder.path().join("weir.yaml"), stop.clone(), pace).await;
        let loaded = source.loaded();
        Self { folder, source, loaded, stop, task }
    }

    async fn with_file(pace: FollowPace) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("weir.yaml"), text(1)).unwrap();
        Self::start(folder, pace).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for a load for which `is` returns true.
    async fn see(&mut self, is: impl Fn(&Loaded) -> bool) {
        let seen = timeout(SOON, self.loaded.wait_for(|loaded| is(loaded))).await;
        seen.expect("the change was not seen").expect("the source has ended");
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.expect("the source goes on after shutdown").unwrap();
        assert_eq!(self.source.reload().await.unwrap_err(), Stopped);
    }
}

fn has_port(port: u16) -> impl Fn(&Loaded) -> bool {
    move |loaded| loaded.result.as_ref().is_ok_and(|config| config.services[0].port == port)
}

fn is_unreadable(loaded: &Loaded) -> bool {
    matches!(loaded.result, Err(ConfigError::Unreadable { .. })) && loaded.digest.is_none()
}

fn is_invalid(loaded: &Loaded) -> bool {
    matches!(loaded.result, Err(ConfigError::Invalid(_))) && loaded.digest.is_some()
}

#[tokio::test]
async fn writes_in_place_and_replacements_by_rename_are_seen() {
    let mut bed = Bed::with_file(EVENTS_ALONE).await;
    assert!(has_port(1)(&bed.loaded.borrow()));
    fs::write(bed.path("weir.yaml"), text(2)).unwrap();
    bed.see(has_port(2)).await;
    for port in 3..6 {
        fs::write(bed.path(".weir.yaml.new"), text(port)).unwrap();
        fs::rename(bed.path(".weir.yaml.new"), bed.path("weir.yaml")).unwrap();
        bed.see(has_port(port)).await;
    }
    bed.end().await;
}

#[tokio::test]
async fn a_bad_file_in_between_is_reported_and_the_next_good_one_is_taken() {
    let mut bed = Bed::with_file(EVENTS_ALONE).await;
    fs::write(bed.path("weir.yaml"), text(0)).unwrap();
    bed.see(is_invalid).await;
    fs::write(bed.path("weir.yaml"), [0xff, 0xfe]).unwrap();
    bed.see(is_unreadable).await;
    fs::write(bed.path("weir.yaml"), text(3)).unwrap();
    bed.see(has_port(3)).await;
    bed.end().await;
}

#[tokio::test]
async fn a_file_that_is_deleted_and_made_again_is_seen() {
    let mut bed = Bed::with_file(EVENTS_ALONE).await;
    fs::remove_file(bed.path("weir.yaml")).unwrap();
    bed.see(is_unreadable).await;
    fs::write(bed.path("weir.yaml"), text(2)).unwrap();
    bed.see(has_port(2)).await;
    bed.end().await;
}

#[tokio::test]
async fn a_config_map_whose_link_moves_is_seen_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let publish = |port: u16| {
        let at = |name: &str| folder.path().join(name);
        let version = format!("..2026_{port}");
        fs::create_dir(at(&version)).unwrap();
        fs::write(at(&version).join("weir.yaml"), text(port)).unwrap();
        let before = fs::read_link(at("..data")).ok();
        symlink(&version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(at(before.to_str().unwrap())).unwrap();
        }
    };
    publish(1);
    symlink("..data/weir.yaml", folder.path().join("weir.yaml")).unwrap();
    let path = folder.path().join("weir.yaml");
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone().drop_guard();
    let (source, task) = FileSource::start_at(&path, shutdown, EVENTS_ALONE).await;
    let mut loaded = source.loaded();
    for port in 2..6 {
        publish(port);
        timeout(SOON, loaded.wait_for(|loaded| has_port(port)(loaded))).await.expect("not seen").unwrap();
    }
    drop(stop);
    timeout(SOON, task).await.expect("goes on without anybody who could stop it").unwrap();
}

#[tokio::test]
async fn a_link_into_another_directory_that_moves_is_seen() {
    let elsewhere = tempfile::tempdir().unwrap();
    for port in [1, 2] {
        fs::create_dir(elsewhere.path().join(port.to_string())).unwrap();
        fs::write(elsewhere.path().join(format!("{port}/weir.yaml")), text(port)).unwrap();
    }
    symlink("1", elsewhere.path().join("current")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    symlink(elsewhere.path().join("current/weir.yaml"), folder.path().join("weir.yaml")).unwrap();
    let mut bed = Bed::start(folder, EVENTS_ALONE).await;
    symlink("2", elsewhere.path().join("next")).unwrap();
    fs::rename(elsewhere.path().join("next"), elsewhere.path().join("current")).unwrap();
    bed.see(has_port(2)).await;
    bed.end().await;
}

#[tokio::test]
async fn what_events_do_not_show_the_poll_finds() {
    let outer = tempfile::tempdir().unwrap();
    for (name, port) in [("conf", 1), ("next", 2)] {
        fs::create_dir(outer.path().join(name)).unwrap();
        fs::write(outer.path().join(name).join("weir.yaml"), text(port)).unwrap();
    }
    let shutdown = CancellationToken::new();
    let pace = FollowPace { poll: Duration::from_millis(50), ..EVENTS_ALONE };
    let (source, _task) = FileSource::start_at(&outer.path().join("conf/weir.yaml"), shutdown, pace).await;
    // The directory itself is replaced: no event names the file.
    fs::rename(outer.path().join("conf"), outer.path().join("before")).unwrap();
    fs::rename(outer.path().join("next"), outer.path().join("conf")).unwrap();
    timeout(SOON, source.loaded().wait_for(|loaded| has_port(2)(loaded))).await.expect("not seen").unwrap();
}

#[tokio::test]
async fn nothing_is_published_while_the_content_stays_the_same() {
    let mut bed = Bed::with_file(FollowPace { poll: Duration::from_millis(20), ..EVENTS_ALONE }).await;
    bed.loaded.mark_unchanged();
    fs::write(bed.path(".new"), text(1)).unwrap();
    fs::rename(bed.path(".new"), bed.path("weir.yaml")).unwrap();
    fs::write(bed.path("other.yaml"), text(2)).unwrap();
    let reloaded = bed.source.reload().await.unwrap();
    assert!(has_port(1)(&reloaded));
    sleep(A_WHILE).await;
    assert!(!bed.loaded.has_changed().unwrap());
    bed.end().await;
}

#[tokio::test]
async fn a_reload_on_demand_reads_at_once() {
    let mut bed = Bed::with_file(FollowPace {
        quiet: Duration::from_secs(60),
        patience: Duration::from_secs(60),
        ..EVENTS_ALONE
    })
    .await;
    bed.loaded.mark_unchanged();
    fs::write(bed.path("weir.yaml"), text(2)).unwrap();
    // By now the source waits for a quiet minute.
    sleep(A_WHILE).await;
    assert!(has_port(1)(&bed.loaded.borrow()));
    let reloaded = timeout(SOON, bed.source.reload()).await.expect("no answer").unwrap();
    assert!(has_port(2)(&reloaded));
    assert!(has_port(2)(&bed.loaded.borrow_and_update()));
    bed.end().await;
}
