//! When the agent's state is reported to the supervisor, and in which words.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tracing::info;

use super::{core::Agent, wanted::is_judged};
use crate::{
    supervisor::{self, Report},
    view::{ready::not_ready, types::Snapshot},
};

/// How much longer systemd is asked to wait, at each request, while backends have no first verdict.
/// The request is repeated every few seconds.
const MORE_TIME: Duration = Duration::from_secs(30);

impl Agent {
    /// Reports readiness once the maps are written, hooks are attached, and every backend has a
    /// verdict or has had enough time for one.
    pub(super) fn become_ready(&mut self) {
        let Some(until) = self.starting_until else { return };
        let is_judged = is_judged(&self.desired, &self.health) || Instant::now() >= until;
        let is_attached = self.node.borrow().hooks.iter().any(|hook| hook.xdp.is_some());
        if is_judged && is_attached && self.sync.last_success_at > 0.0 {
            self.starting_until = None;
            let report = self.report();
            supervisor::ready(&report);
            self.told = report;
            info!("ready");
        }
    }

    /// Keeps systemd from aborting the start before the last backend's first verdict is due.
    pub(super) fn ask_for_time(&self) {
        if self.starting_until.is_some_and(|until| Instant::now() < until) {
            supervisor::extend_start(MORE_TIME);
        }
    }

    /// Reloads the file after SIGHUP.
    pub(super) async fn reload_by_signal(&mut self) {
        let outcome = if self.starting_until.is_some() {
            // READY=1, which ends a reload, would also end the start.
            self.reload(false).await
        } else {
            supervisor::reloading();
            let outcome = self.reload(false).await;
            let report = outcome_of_reload(&outcome);
            supervisor::ready(&report);
            self.told = report;
            outcome
        };
        self.is_report_due = true;
        // The result is reported above, and in the log and the status.
        drop(outcome);
    }

    /// Reports the agent's state to the supervisor if it has changed.
    pub(super) fn tell(&mut self) {
        self.is_report_due = false;
        if !supervisor::is_there() {
            return;
        }
        let report = self.report();
        if report != self.told {
            supervisor::status(&report);
            self.told = report;
        }
    }

    fn report(&mut self) -> Report {
        let is_starting = self.starting_until.is_some();
        let snapshot = self.snapshot();
        Report::new(&text(&snapshot, is_starting), !snapshot.status.config.last_reload_ok)
    }
}

fn outcome_of_reload(outcome: &Result<String, Vec<String>>) -> Report {
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
    let services = snapshot.services.iter().map(|view| (&view.namespace, &view.name)).collect::<BTreeSet<_>>().len();
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
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::types::{BackendTotals, InterfaceView, Overall, ServiceView, Status, SyncStatus};

    fn service(name: &str, vip: &str) -> ServiceView {
        ServiceView {
            namespace: String::new(),
            name: name.to_owned(),
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
