//! Waits until backends are drained, or get new connections again.

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use super::{client::Client, text};
use crate::{
    state::{AdminState, BackendId},
    view::types::BackendView,
};

const PACE: Duration = Duration::from_millis(500);
/// After a drain's deadline, the time for the agent's count of connections to show their end: the
/// agent counts them every five seconds or so while a drain waits.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// No connections are left.
    Drained,
    /// The backend gets new connections.
    Serving,
}

pub struct Waited {
    pub done: bool,
    pub message: String,
    /// The backends' state at the end; those that have disappeared are left out.
    pub backends: Vec<BackendView>,
}

/// Waits for `goal` on all of `chosen`, for `timeout` at most.
pub async fn until(
    client: &Client,
    goal: Goal,
    chosen: &[BackendView],
    timeout: Option<Duration>,
) -> anyhow::Result<Waited> {
    let ids: HashSet<BackendId> = chosen.iter().map(BackendView::id).collect();
    let begun = Instant::now();
    let mut progress = ProgressLine::default();
    let mut run_out_since: Option<Instant> = None;
    loop {
        let all: Vec<BackendView> = client.get("/v1/backends").await?;
        let backends: Vec<BackendView> = all.into_iter().filter(|now| ids.contains(&now.id())).collect();
        let took = text::duration(begun.elapsed().as_secs_f64());
        let ended = |done, message| Ok(Waited { done, message, backends: backends.clone() });
        let remaining = match outcome(goal, &backends) {
            WaitOutcome::Done(what) => {
                progress.clear();
                return ended(true, format!("{what} after {took}"));
            }
            WaitOutcome::Hopeless(why) => {
                progress.clear();
                return ended(false, why);
            }
            WaitOutcome::RunOut(remaining) => {
                if run_out_since.get_or_insert_with(Instant::now).elapsed() > GRACE {
                    progress.clear();
                    return ended(false, format!("the drain has ended, but there remain {remaining}"));
                }
                remaining
            }
            WaitOutcome::Wait(remaining) => remaining,
        };
        if timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            progress.clear();
            return ended(false, format!("not done after {took}: there remain {remaining}"));
        }
        progress.show(&remaining);
        tokio::time::sleep(PACE).await;
    }
}

#[derive(PartialEq, Debug)]
enum WaitOutcome {
    Done(&'static str),
    /// What is left.
    Wait(String),
    /// Every drain has ended, and some connections are left.
    RunOut(String),
    Hopeless(String),
}

fn outcome(goal: Goal, backends: &[BackendView]) -> WaitOutcome {
    match goal {
        Goal::Drained => drained(backends),
        Goal::Serving => serving(backends),
    }
}

fn drained(backends: &[BackendView]) -> WaitOutcome {
    if let Some(back) = backends.iter().find(|backend| backend.admin == AdminState::Active && !backend.removed) {
        return WaitOutcome::Hopeless(format!(
            "{} drains no longer: the drain was ended by another command or by the file",
            name(back)
        ));
    }
    let left = |backend: &BackendView| backend.drain_remaining_seconds.is_none_or(|seconds| seconds > 0.0);
    // In DSR modes connections are not counted: such a backend is drained when its time is over.
    let busy = |backend: &&BackendView| match backend.connections_active {
        Some(connections) => connections > 0,
        None => left(backend),
    };
    let busy: Vec<&BackendView> = backends.iter().filter(busy).collect();
    if busy.is_empty() {
        let is_counted = backends.iter().all(|backend| backend.connections_active.is_some());
        return WaitOutcome::Done(if is_counted {
            "drained: no connections are left"
        } else {
            "the drain is over (in DSR modes connections are not counted)"
        });
    }
    let remaining = busy.iter().map(|backend| what_remains(backend)).collect::<Vec<_>>().join(", ");
    if busy.iter().any(|backend| left(backend)) { WaitOutcome::Wait(remaining) } else { WaitOutcome::RunOut(remaining) }
}

fn serving(backends: &[BackendView]) -> WaitOutcome {
    if backends.is_empty() {
        return WaitOutcome::Hopeless("the backend has left the configuration".to_owned());
    }
    if let Some(stays) = backends.iter().find(|backend| backend.admin != AdminState::Active) {
        let (state, from) = (stays.admin.name(), stays.admin_from.name());
        return WaitOutcome::Hopeless(format!("{} stays {state} by the {from}; change it there", name(stays)));
    }
    let waiting: Vec<&BackendView> = backends.iter().filter(|backend| !backend.eligible).collect();
    if waiting.is_empty() {
        return WaitOutcome::Done("it gets new connections");
    }
    let not_yet = |backend: &&BackendView| {
        format!("{} (health {}: {})", name(backend), backend.health.name(), text::or_none(&backend.reason))
    };
    WaitOutcome::Wait(waiting.iter().map(not_yet).collect::<Vec<_>>().join(", "))
}

fn what_remains(backend: &BackendView) -> String {
    let connections = match backend.connections_active {
        Some(count) => text::counted(count, "connection"),
        None => "connections that nobody counts (DSR)".to_owned(),
    };
    match backend.drain_remaining_seconds {
        Some(seconds) => format!("{connections} of {} ({} left)", name(backend), text::duration(seconds)),
        None => format!("{connections} of {}", name(backend)),
    }
}

fn name(backend: &BackendView) -> String {
    backend.id().to_string()
}

/// A line that is overwritten on a terminal; not written elsewhere.
#[derive(Default)]
struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    fn show(&mut self, remaining: &str) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[Kwaiting for {remaining}");
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::get::backends::tests::backend, *};

    fn draining(connections: Option<u64>, left: Option<f64>) -> BackendView {
        BackendView {
            admin: AdminState::Draining,
            eligible: false,
            connections_active: connections,
            drain_remaining_seconds: left,
            ..backend("10.2.0.11:8080")
        }
    }

    #[test]
    fn drain_is_done_when_no_connection_or_no_backend_is_left() {
        assert!(matches!(drained(&[]), WaitOutcome::Done(_)));
        assert!(matches!(drained(&[draining(Some(0), Some(60.0))]), WaitOutcome::Done(_)));
        let waiting = drained(&[draining(Some(1), Some(60.0)), draining(Some(0), Some(60.0))]);
        assert_eq!(waiting, WaitOutcome::Wait("1 connection of web/10.2.0.11:8080 (1m left)".to_owned()));
    }

    #[test]
    fn drain_whose_time_is_over_says_what_remains() {
        let run_out = drained(&[draining(Some(3), Some(0.0))]);
        assert!(matches!(run_out, WaitOutcome::RunOut(remains) if remains.starts_with("3 ")));
        assert!(matches!(drained(&[draining(None, Some(9.0))]), WaitOutcome::Wait(_)));
        assert_eq!(
            drained(&[draining(None, Some(0.0))]),
            WaitOutcome::Done("the drain is over (in DSR modes connections are not counted)")
        );
    }

    #[test]
    fn waiting_ends_when_it_has_become_pointless() {
        assert!(matches!(drained(&[backend("10.2.0.11:8080")]), WaitOutcome::Hopeless(_)));
        assert!(matches!(serving(&[draining(None, None)]), WaitOutcome::Hopeless(why) if why.contains("by the file")));
    }
}
