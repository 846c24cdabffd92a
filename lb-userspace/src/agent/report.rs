//! Reports the agent's state to the supervisor: when, and in which words.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    handle::Queries,
    passes::Passes,
    published::Published,
    read::{Pulse, Reader},
};
use crate::{
    supervisor::{self, Report},
    view::{
        ready::not_ready,
        types::{ServiceView, Snapshot},
    },
};

/// The extra time that each request asks of systemd while backends have no first verdict. The
/// request is repeated every few seconds.
const MORE_TIME: Duration = Duration::from_secs(30);

/// The maximum time between two looks at the state.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The minimum time between two looks, however often the state changes.
const PAUSE: Duration = Duration::from_secs(1);

/// Reports the agent's state to the supervisor whenever it has changed, and records since when the
/// overall state has been the same. Ends when `shutdown` is cancelled.
pub async fn run(reader: Reader, mut published: watch::Receiver<Arc<Published>>, shutdown: CancellationToken) {
    let reporter = Reporter { reader, told: Report::default(), seen: None };
    let ended = "the task that reports the state has failed: the supervisor learns of no change any more";
    let mut looks = Passes::new(reporter, "the state cannot be reported", ended);
    loop {
        let is_starting = published.borrow_and_update().is_starting;
        if is_starting {
            supervisor::extend_start(MORE_TIME);
        }
        let look = |reporter: &mut Reporter| {
            reporter.look();
            Ok::<_, Infallible>(())
        };
        let Ok(_) = looks.pass(look).await else { return };
        let started = async {
            match is_starting {
                true => published.wait_for(|published| !published.is_starting).await.is_ok(),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // Report at once that the agent is ready: people and systemd wait for it.
            true = started => continue,
            () = sleep(PAUSE) => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Ok(()) = published.changed() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

struct Reporter {
    reader: Reader,
    /// The last report to the supervisor.
    told: Report,
    seen: Option<Pulse>,
}

impl Reporter {
    fn look(&mut self) {
        let pulse = self.reader.pulse();
        if self.seen.as_ref() == Some(&pulse) {
            return;
        }
        let is_starting = pulse.published.is_starting;
        let snapshot = self.reader.state();
        let report = Report::new(&text(&snapshot, is_starting), !snapshot.status.config.last_reload_ok);
        let reloads = |pulse: &Pulse| pulse.published.reloads;
        let was_starting = self.seen.as_ref().is_none_or(|seen| seen.published.is_starting);
        if was_starting && !is_starting {
            supervisor::ready(&report);
        } else if report != self.told || self.seen.as_ref().map(reloads) != Some(reloads(&pulse)) {
            supervisor::status(&report);
        }
        self.told = report;
        self.seen = Some(pulse);
    }
}

/// The report of a reload to the supervisor.
pub fn outcome_of_reload(outcome: &Result<String, Vec<String>>) -> Report {
    match outcome {
        Ok(message) => Report::new(&format!("reload: {message}"), false),
        Err(errors) => Report::new(&format!("reload refused: {}", errors.join("; ")), true),
    }
}

/// The state and its reason, or what a start is waiting for, with counts:
/// `ok: 2 services, 5 of 6 backends up, 2 interfaces attached`.
fn text(snapshot: &Snapshot, is_starting: bool) -> String {
    let status = &snapshot.status;
    let counts = counts(snapshot);
    match (not_ready(snapshot).filter(|_| is_starting), status.reasons.first()) {
        (Some(why), _) => format!("starting: {why} ({counts})"),
        (None, Some(reason)) => format!("{}: {reason} ({counts})", status.state.name()),
        (None, None) => format!("{}: {counts}", status.state.name()),
    }
}

fn counts(snapshot: &Snapshot) -> String {
    // There is one view for each VIP, so count distinct names.
    let services = snapshot.services.iter().map(ServiceView::full_name).collect::<BTreeSet<_>>().len();
    let backends = &snapshot.status.backends;
    let attached = snapshot.interfaces.iter().filter(|interface| interface.xdp_mode != "none").count();
    format!(
        "{}, {} of {} up, {} attached",
        counted(services, "service"),
        backends.up,
        counted(backends.all as usize, "backend"),
        counted(attached, "interface")
    )
}

/// `1 mistake`, `2 mistakes`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::types::{BackendTotals, InterfaceView, Overall, Status, SyncStatus};

    fn service(name: &str, vip: &str) -> ServiceView {
        ServiceView {
            namespace: String::new(),
            name: name.to_owned(),
            port_name: String::new(),
            vip: vip.parse().unwrap(),
            port: 80,
            protocol: "tcp".to_owned(),
            mode: "nat".to_owned(),
            policy: "maglev".to_owned(),
            backends_eligible: 1,
            backends_all: 1,
            connections_active: None,
            connections_total: 0,
            connections_per_second: 0.0,
            packets_total: 0,
            bytes_total: 0,
            reply_packets_total: 0,
            reply_bytes_total: 0,
            refused_total: 0,
            age_seconds: 0.0,
            ring_size: 1021,
            slots_in_transition: 0,
            slots_tracked: 0,
            exceptions: None,
            ring_digest: String::new(),
        }
    }

    fn interface(name: &str, xdp_mode: &str) -> InterfaceView {
        InterfaceView {
            name: name.to_owned(),
            ifindex: 2,
            xdp_mode: xdp_mode.to_owned(),
            tc: "tcx".to_owned(),
            mtu: 1500,
            actions: Vec::new(),
            problem: String::new(),
        }
    }

    /// Two services of three VIPs, five of six backends up, two of three interfaces attached.
    fn snapshot(state: Overall, reasons: &[&str]) -> Snapshot {
        Snapshot {
            status: Status {
                state,
                reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
                backends: BackendTotals { all: 6, up: 5, ..BackendTotals::default() },
                sync: SyncStatus { last_success_at: 1.0, ..SyncStatus::default() },
                ..Status::default()
            },
            services: vec![service("a", "192.0.2.1"), service("a", "2001:db8::1"), service("b", "192.0.2.2")],
            interfaces: vec![interface("eth0", "native"), interface("eth1", "generic"), interface("eth2", "none")],
            ..Snapshot::default()
        }
    }

    #[test]
    fn report_says_state_counts_and_the_first_reason() {
        let counts = "2 services, 5 of 6 backends up, 2 interfaces attached";
        assert_eq!(text(&snapshot(Overall::Ok, &[]), false), format!("ok: {counts}"));
        let degraded = snapshot(Overall::Degraded, &["backend a/10.0.0.1:80 is down: refused", "another"]);
        assert_eq!(text(&degraded, false), format!("degraded: backend a/10.0.0.1:80 is down: refused ({counts})"));
    }

    #[test]
    fn report_of_a_start_says_what_is_waited_for() {
        let mut starting = snapshot(Overall::Down, &["the data path is attached to no interface"]);
        starting.status.sync.last_success_at = 0.0;
        let said = text(&starting, true);
        assert!(said.starts_with("starting: the maps have not been written yet"), "{said}");
        starting.status.sync.last_success_at = 1.0;
        starting.status.waiting_for = "the first verdict on every backend".to_owned();
        let said = text(&starting, true);
        assert!(said.starts_with("starting: waiting for the first verdict on every backend (2 services"), "{said}");
    }

    #[test]
    fn report_of_a_reload_says_what_came_of_it() {
        let taken = outcome_of_reload(&Ok("nothing has changed".to_owned()));
        assert_eq!((taken.text.as_str(), taken.is_refused), ("reload: nothing has changed", false));
        let refused = outcome_of_reload(&Err(vec!["weir.yaml:1: a".to_owned(), "weir.yaml:2: b".to_owned()]));
        assert_eq!(
            (refused.text.as_str(), refused.is_refused),
            ("reload refused: weir.yaml:1: a; weir.yaml:2: b", true)
        );
    }
}
