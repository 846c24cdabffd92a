//! `weir status`: a summary of the agent and its data path.

use std::{collections::BTreeSet, process::ExitCode};

use clap::Args;

use super::{
    client::Client,
    output::{self, Style, View, Watch},
    table, text,
};
use crate::{
    state::ServiceName,
    view::types::{BackendTotals, Overall, ServiceView, Severity, Snapshot, SourceView, Status as Document},
};

/// Summarise the state of the agent and its data path
///
/// Exits with 0 when all is well, 1 when degraded (traffic flows, but something needs attention),
/// and 2 when down: none of a service's backends can serve, the data path is not attached, or the
/// agent isn't running.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir status
  weir status --watch 5s
  weir status -o json | jq .reasons")]
pub struct Status {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

impl Status {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let state = if self.view.is_for_people() {
            let fetch = async || client.get::<Snapshot>("/v1/snapshot").await;
            output::show(&self.view, &self.watch, fetch, render).await?.status.state
        } else {
            let fetch = async || client.get::<Document>("/v1/status").await;
            output::show(&self.view, &self.watch, fetch, |_, _| String::new()).await?.state
        };
        Ok(ExitCode::from(match state {
            Overall::Ok => 0,
            Overall::Degraded => 1,
            Overall::Down => 2,
        }))
    }
}

fn render(snapshot: &Snapshot, style: Style) -> String {
    let status = &snapshot.status;
    let mut lines = NamedLines(Vec::new());
    lines.add("state", state(status, style.now));
    status.reasons.iter().for_each(|reason| lines.go_on(reason.clone()));
    lines.add("agent", format!("weir {}, for {}", status.version, text::duration(style.now - status.started_at)));
    config(&mut lines, status, style.now);
    sources(&mut lines, status);
    lines.add("services", services(snapshot));
    lines.add("backends", backends(&status.backends));
    interfaces(&mut lines, snapshot);
    nat(&mut lines, status);
    tables(&mut lines, status, style.wide);
    sync(&mut lines, status, style.now);
    findings(&mut lines, status, style.wide);
    table::aligned(None, lines.0)
}

/// Lines with a name and a value; the name is given only in the first line of several.
struct NamedLines(Vec<Vec<String>>);

impl NamedLines {
    fn add(&mut self, name: &str, value: String) {
        self.0.push(vec![name.to_owned(), value]);
    }

    fn go_on(&mut self, value: String) {
        self.add("", value);
    }
}

fn state(status: &Document, now: f64) -> String {
    let name = status.state.name();
    format!("{name}, since {} ({})", text::moment(status.state_since), text::ago(status.state_since, now))
}

fn config(lines: &mut NamedLines, status: &Document, now: f64) {
    let config = &status.config;
    lines.add("config", format!("{}, in force since {}", config.path, text::moment(config.loaded_at)));
    if config.last_reload_ok {
        lines.go_on(format!("last reload was taken over ({})", text::ago(config.loaded_at, now)));
    } else {
        lines.go_on("last reload was REFUSED, the configuration before it stays in force:".to_owned());
        config.errors.iter().for_each(|error| lines.go_on(format!("  {error}")));
    }
}

/// The reasons at the top say why a source or a service is not in order.
fn sources(lines: &mut NamedLines, status: &Document) {
    for (at, source) in status.sources.iter().enumerate() {
        let state = match (source.synced, &source.failing_since) {
            (_, Some(since)) => format!("can't be reached since {}", text::moment(*since)),
            (true, None) => "synced".to_owned(),
            (false, None) => "has not listed its services yet".to_owned(),
        };
        let SourceView { name, services, refused, .. } = source;
        let title = if at == 0 { "sources" } else { "" };
        lines.add(title, format!("{name}: {state}, {services} services, {} refused", refused.len()));
    }
}

fn services(snapshot: &Snapshot) -> String {
    let names: BTreeSet<ServiceName> = snapshot.services.iter().map(ServiceView::full_name).collect();
    let served = snapshot.services.iter().filter(|service| service.backends_eligible > 0).count();
    format!("{} on {} VIP:port, {served} of them with a backend that serves", names.len(), snapshot.services.len())
}

fn backends(totals: &BackendTotals) -> String {
    let BackendTotals { all, up, down, unknown, draining, disabled } = totals;
    format!("{all}: {up} up, {down} down, {unknown} unknown, {draining} draining, {disabled} disabled")
}

fn interfaces(lines: &mut NamedLines, snapshot: &Snapshot) {
    let mut name = "interfaces";
    if snapshot.interfaces.is_empty() {
        lines.add(name, "attached to none".to_owned());
    }
    for interface in &snapshot.interfaces {
        let mut line = format!("{}: XDP {}, TC {}", interface.name, interface.xdp_mode, interface.tc);
        if !interface.problem.is_empty() {
            line.push_str(&format!("; {}", interface.problem));
        }
        lines.add(std::mem::take(&mut name), line);
    }
}

fn nat(lines: &mut NamedLines, status: &Document) {
    let nat = &status.nat;
    if nat.ports_max == 0 {
        lines.add("nat", "no backend needs it".to_owned());
        return;
    }
    let share = text::percent(nat.ports_used as f64 / nat.ports_max as f64);
    lines.add("nat", format!("{} of {} ports in use ({share})", nat.ports_used, nat.ports_max));
    if let Some((backend, share)) = &nat.fullest {
        lines.go_on(format!("fullest: {backend}, {}", text::percent(*share)));
    }
    if !nat.addresses.is_empty() {
        let addresses: Vec<String> = nat.addresses.iter().map(ToString::to_string).collect();
        lines.go_on(format!("addresses: {}", addresses.join(", ")));
    }
    if nat.exhausted > 0 {
        let refused = text::counted(nat.exhausted, "connection");
        lines.go_on(format!("{refused} reset because no port was free; give `snat.addresses` more addresses"));
    }
}

/// Only tables with at least 1 % of their entries in use or with insert failures, unless `all` is
/// set.
fn tables(lines: &mut NamedLines, status: &Document, all: bool) {
    let mut name = "tables";
    for table in &status.tables {
        let share = table.entries as f64 / table.max_entries.max(1) as f64;
        if !all && share < 0.01 && table.insert_failures == 0 {
            continue;
        }
        let mut line = format!("{}: {} of {} ({})", table.map, table.entries, table.max_entries, text::percent(share));
        if table.insert_failures > 0 {
            line.push_str(&format!(", {} refused", text::counted(table.insert_failures, "insertion")));
        }
        lines.add(std::mem::take(&mut name), line);
    }
    if !name.is_empty() && !status.tables.is_empty() {
        lines.add(name, "all below 1% (-o wide shows each)".to_owned());
    }
}

fn sync(lines: &mut NamedLines, status: &Document, now: f64) {
    let sync = &status.sync;
    if sync.last_success_at > 0.0 {
        let took = text::duration(sync.last_duration_seconds);
        lines.add(
            "sync",
            format!(
                "last {}, took {took}; {}",
                text::ago(sync.last_success_at, now),
                text::counted(sync.errors, "error")
            ),
        );
    } else {
        lines.add("sync", format!("never succeeded; {}", text::counted(sync.errors, "error")));
    }
    if let Some(error) = &sync.last_error {
        lines.go_on(format!("last error: {error}"));
    }
}

/// The problems with their remedies; with `all` also the checks that found nothing.
fn findings(lines: &mut NamedLines, status: &Document, all: bool) {
    let mut name = "findings";
    for finding in status.findings.iter().filter(|finding| all || finding.severity != Severity::Ok) {
        let severity = finding.severity.name();
        lines.add(std::mem::take(&mut name), format!("{severity}: {}: {}", finding.check, finding.message));
        if !finding.remedy.is_empty() {
            lines.go_on(format!("  remedy: {}", finding.remedy));
        }
    }
    if !name.is_empty() {
        lines.add(name, "none".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::view::types::{ConfigStatus, Finding, InterfaceView, NatStatus, SyncStatus, TableView};

    fn status() -> Document {
        Document {
            version: "0.1.0".to_owned(),
            state: Overall::Degraded,
            waiting_for: String::new(),
            reasons: vec!["service web: 1 of 3 backends is down (10.2.0.12:8080)".to_owned()],
            state_since: 1_700_000_000.0,
            started_at: 1_699_990_000.0,
            config: ConfigStatus {
                path: "/etc/weir/weir.yaml".to_owned(),
                loaded_at: 1_699_990_000.0,
                last_reload_ok: false,
                errors: vec!["/etc/weir/weir.yaml:12: services[0].port: 0 is not a port".to_owned()],
            },
            backends: BackendTotals { all: 3, up: 2, down: 1, ..BackendTotals::default() },
            tables: vec![
                TableView { map: "NAT_HALF_OPEN_V4".to_owned(), entries: 3, max_entries: 131_072, insert_failures: 0 },
                TableView {
                    map: "NAT_ESTABLISHED_V4".to_owned(),
                    entries: 131_072,
                    max_entries: 262_144,
                    insert_failures: 1,
                },
            ],
            nat: NatStatus {
                addresses: vec!["10.2.0.1".parse::<IpAddr>().unwrap()],
                ports_used: 120,
                ports_max: 193_536,
                fullest: Some(("web/10.2.0.11:8080".to_owned(), 0.004)),
                exhausted: 2,
            },
            sync: SyncStatus {
                last_success_at: 1_700_000_058.0,
                last_duration_seconds: 0.0021,
                ..SyncStatus::default()
            },
            lost_hooks: 0,
            sources: vec![SourceView {
                name: "kubernetes".to_owned(),
                failing_since: Some(1_700_000_000.0),
                services: 12,
                ..SourceView::default()
            }],
            findings: vec![
                Finding {
                    severity: Severity::Ok,
                    check: "bpffs".to_owned(),
                    message: "is mounted".to_owned(),
                    remedy: String::new(),
                },
                Finding {
                    severity: Severity::Warning,
                    check: "forwarding eth0".to_owned(),
                    message: "IPv6 forwarding is off".to_owned(),
                    remedy: "sysctl -w net.ipv6.conf.eth0.forwarding=1".to_owned(),
                },
            ],
        }
    }

    #[test]
    fn status_says_what_is_wrong_since_when_and_what_to_do() {
        let interfaces = vec![InterfaceView {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: "native".to_owned(),
            tc: "tcx".to_owned(),
            mtu: 1500,
            actions: Vec::new(),
            problem: String::new(),
        }];
        let snapshot = Snapshot { status: status(), interfaces, ..Snapshot::default() };
        let expected = "\
state        degraded, since 2023-11-14T22:13:20Z (1m ago)
             service web: 1 of 3 backends is down (10.2.0.12:8080)
agent        weir 0.1.0, for 2h47m
config       /etc/weir/weir.yaml, in force since 2023-11-14T19:26:40Z
             last reload was REFUSED, the configuration before it stays in force:
               /etc/weir/weir.yaml:12: services[0].port: 0 is not a port
sources      kubernetes: can't be reached since 2023-11-14T22:13:20Z, 12 services, 0 refused
services     0 on 0 VIP:port, 0 of them with a backend that serves
backends     3: 2 up, 1 down, 0 unknown, 0 draining, 0 disabled
interfaces   eth0: XDP native, TC tcx
nat          120 of 193536 ports in use (0.1%)
             fullest: web/10.2.0.11:8080, 0.4%
             addresses: 10.2.0.1
             2 connections reset because no port was free; give `snat.addresses` more addresses
tables       NAT_ESTABLISHED_V4: 131072 of 262144 (50.0%), 1 insertion refused
sync         last 2s ago, took 2ms; 0 errors
findings     warning: forwarding eth0: IPv6 forwarding is off
               remedy: sysctl -w net.ipv6.conf.eth0.forwarding=1
";
        assert_eq!(render(&snapshot, Style { wide: false, headers: true, now: 1_700_000_060.0 }), expected);
    }

    #[test]
    fn wide_shows_every_table_and_every_finding() {
        let snapshot = Snapshot { status: status(), ..Snapshot::default() };
        let shown = render(&snapshot, Style { wide: true, headers: true, now: 1_700_000_060.0 });
        assert!(shown.contains("NAT_HALF_OPEN_V4: 3 of 131072 (0.0%)"), "{shown}");
        assert!(shown.contains("ok: bpffs: is mounted"), "{shown}");
    }
}
