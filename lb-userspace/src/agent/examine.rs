//! Checks periodically whether the machine still meets the agent's needs, as `weir doctor` does.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    doctor::{Subject, findings},
    model::Config,
    view::types::{Finding, Severity},
};

/// The current findings, and the channel for the configuration to check.
pub struct Examination {
    pub findings: watch::Receiver<Vec<Finding>>,
    pub config: watch::Sender<Arc<Config>>,
}

/// Delay before the first periodic check: by then the agent has attached and its neighbours are
/// resolved.
const FIRST: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(60);

/// Checks the machine once before anything is changed, logs the problems, and then continues to
/// check in a separate task.
pub async fn start(config: Arc<Config>, pin_dir: PathBuf, shutdown: CancellationToken) -> Examination {
    let mut found = findings(Some(&config), &pin_dir, &Subject::Process).await;
    // Drop warnings about backends: before the agent starts, nothing has resolved their neighbours.
    found.retain(|finding| !(finding.check.starts_with("backend") && finding.severity == Severity::Warning));
    say(&[], &found);
    let (publish, findings) = watch::channel(found);
    let (config, looked_at) = watch::channel(config);
    tokio::spawn(run(publish, looked_at, pin_dir, shutdown));
    Examination { findings, config }
}

async fn run(
    publish: watch::Sender<Vec<Finding>>,
    mut config: watch::Receiver<Arc<Config>>,
    pin_dir: PathBuf,
    shutdown: CancellationToken,
) {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Ok(()) = config.changed() => {
                pause = FIRST;
                continue;
            }
            () = sleep(pause) => {}
        }
        pause = EVERY;
        let looked_at = config.borrow().clone();
        let found = findings(Some(&looked_at), &pin_dir, &Subject::Process).await;
        say(&publish.borrow(), &found);
        publish.send_replace(found);
    }
}

/// Logs the new findings.
fn say(before: &[Finding], after: &[Finding]) {
    let before: HashSet<&Finding> = before.iter().collect();
    for finding in after.iter().filter(|finding| !before.contains(finding)) {
        let Finding { severity, check, message, remedy } = finding;
        match severity {
            Severity::Ok => {}
            Severity::Warning => warn!(check, remedy, "{message}"),
            Severity::Error => error!(check, remedy, "{message}"),
        }
    }
}
