use clap::Args;
use serde::Serialize;

use super::{
    super::{client::Client, table::Column, text},
    listing::Listing,
};
use crate::{state::AdminState, view::types::BackendView};

/// List backends
///
/// ADMIN is the state that the file or the CLI asks for, HEALTH the verdict of the probes, STATE
/// the resulting state: a `serving` backend gets new flows, a `draining` one keeps only its old
/// flows (for at most the time shown), and `down` and `disabled` ones get no new flows. ACTIVE is
/// the number of open connections, `unknown` in DSR modes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get backends
  weir get backends web -o wide          also who set weight and admin state: the file or the CLI
  weir get backends web --watch
  weir get backends -o json | jq '.[] | select(.eligible | not)'")]
pub struct Backends {
    /// Only backends of this service: NAME, NAMESPACE/NAME (all its ports) or
    /// NAMESPACE/NAME:PORT-NAME
    service: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Serialize)]
struct BackendsQuery<'a> {
    service: Option<&'a str>,
}

impl Backends {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let query = BackendsQuery { service: self.service.as_deref() };
        let fetch = async || client.get_with("/v1/backends", &query).await;
        self.listing.show(COLUMNS, "there are no backends", fetch).await?;
        Ok(())
    }
}

const COLUMNS: &[Column<BackendView>] = &[
    Column::new("SERVICE", |backend, _| backend.service_name().to_string()),
    Column::new("BACKEND", |backend, _| backend.address.to_string()),
    Column::new("NODE", |backend, _| text::known(backend.node.as_deref())),
    Column::new("ZONE", |backend, _| text::known(backend.zone.as_deref())),
    Column::new("WEIGHT", |backend, _| backend.weight.to_string()),
    Column::new("ADMIN", |backend, _| backend.admin.name().to_owned()),
    Column::new("HEALTH", |backend, _| backend.health.name().to_owned()),
    Column::new("STATE", |backend, _| state(backend)),
    Column::new("ACTIVE", |backend, _| text::known(backend.connections_active)),
    Column::new("CONNS/S", |backend, _| text::rate(backend.connections_per_second)),
    Column::wide("BYTES-IN", |backend, _| text::bytes(backend.bytes_total)),
    Column::wide("BYTES-OUT", |backend, _| text::bytes(backend.reply_bytes_total)),
    Column::wide("LAST-CHANGE", |backend, now| text::known(backend.last_change_at.map(|at| text::ago(at, now)))),
    Column::wide("LAST-CHECK", |backend, now| text::known(backend.last_check_at.map(|at| text::ago(at, now)))),
    Column::wide("REASON", |backend, _| text::or_none(&backend.reason)),
    Column::wide("SLOTS%", |backend, _| text::percent(backend.slots_share)),
    Column::wide("WEIGHT-FROM", |backend, _| backend.weight_from.name().to_owned()),
    Column::wide("ADMIN-FROM", |backend, _| backend.admin_from.name().to_owned()),
    Column::wide("NAT-PORTS", |backend, _| format!("{}/{}", backend.nat_ports_used, backend.nat_ports_max)),
];

/// The state that results from admin state, health and weight.
fn state(backend: &BackendView) -> String {
    let left = match backend.drain_remaining_seconds {
        Some(seconds) => format!("{} left", text::duration(seconds)),
        None => "until its last flow ends".to_owned(),
    };
    match backend.admin {
        AdminState::Disabled => "disabled".to_owned(),
        _ if backend.removed => format!("draining (removed, {left})"),
        AdminState::Draining => format!("draining ({left})"),
        AdminState::Active if backend.eligible => "serving".to_owned(),
        AdminState::Active if backend.health.is_down() => backend.health.name().to_owned(),
        AdminState::Active if backend.weight == 0 => "idle (weight 0)".to_owned(),
        // Not serving yet: the first verdict of its probes is still to come.
        AdminState::Active => "waiting".to_owned(),
    }
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::{
        super::super::{output::Style, table::table},
        *,
    };
    use crate::state::{Health, Origin};

    /// A backend that serves.
    pub(in crate::cli) fn backend(address: &str) -> BackendView {
        BackendView {
            namespace: String::new(),
            service: "web".to_owned(),
            port_name: String::new(),
            address: address.parse().unwrap(),
            node: None,
            zone: Some("a".to_owned()),
            weight: 1,
            weight_from: Origin::File,
            admin: AdminState::Active,
            admin_from: Origin::File,
            health: Health::Up,
            eligible: true,
            removed: false,
            drain_remaining_seconds: None,
            connections_active: Some(12),
            connections_total: 100,
            connections_per_second: 3.25,
            packets_total: 1000,
            bytes_total: 2048,
            reply_packets_total: 1000,
            reply_bytes_total: 4096,
            last_change_at: Some(940.0),
            last_check_at: None,
            last_check_duration_seconds: None,
            reason: String::new(),
            check_failures: Vec::new(),
            state_changes_total: 1,
            slots_share: 1.0 / 3.0,
            nat_ports_used: 12,
            nat_ports_max: 64512,
        }
    }

    #[test]
    fn backends_have_the_columns_that_are_promised() {
        let draining = BackendView {
            admin: AdminState::Draining,
            admin_from: Origin::Cli,
            eligible: false,
            drain_remaining_seconds: Some(720.0),
            zone: None,
            connections_active: None,
            ..backend("[fd02::11]:8080")
        };
        let rows = [backend("10.2.0.11:8080"), draining];
        let expected = "\
SERVICE   BACKEND           NODE      ZONE      WEIGHT   ADMIN      HEALTH   STATE                 ACTIVE    CONNS/S
web       10.2.0.11:8080    unknown   a         1        active     up       serving               12        3.2
web       [fd02::11]:8080   unknown   unknown   1        draining   up       draining (12m left)   unknown   3.2
";
        assert_eq!(table(COLUMNS, &rows, Style { wide: false, headers: true, now: 1000.0 }), expected);
    }

    #[test]
    fn wide_says_where_weight_and_admin_state_came_from() {
        let shown = table(COLUMNS, &[backend("10.2.0.11:8080")], Style { wide: true, headers: true, now: 1000.0 });
        let (header, row) = shown.split_once('\n').unwrap();
        let expected =
            "BYTES-IN   BYTES-OUT   LAST-CHANGE   LAST-CHECK   REASON   SLOTS%   WEIGHT-FROM   ADMIN-FROM   NAT-PORTS";
        assert!(header.ends_with(expected), "{header}");
        assert!(
            row.contains("2.0Ki      4.0Ki       1m ago        unknown      none     33.3%    file          file"),
            "{row}"
        );
    }

    #[test]
    fn state_is_what_results_of_the_others() {
        let base = || BackendView { eligible: false, ..backend("10.2.0.11:8080") };
        let down = BackendView { health: Health::Down, ..base() };
        assert_eq!(state(&down), "down");
        assert_eq!(state(&BackendView { admin: AdminState::Disabled, ..base() }), "disabled");
        assert_eq!(state(&BackendView { weight: 0, ..base() }), "idle (weight 0)");
        let removed = BackendView { removed: true, admin: AdminState::Draining, ..base() };
        assert_eq!(state(&removed), "draining (removed, until its last flow ends)");
        assert_eq!(
            state(&BackendView { drain_remaining_seconds: Some(5.0), ..removed }),
            "draining (removed, 5s left)"
        );
    }
}
