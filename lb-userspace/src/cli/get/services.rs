use clap::Args;

use super::{
    super::{client::Client, table::Column, text},
    listing::Listing,
};
use crate::{model::Mode, view::types::ServiceView};

/// List services, one line for each VIP and port
///
/// BACKENDS: the number of backends that get new flows, of all backends. CONNS: open connections;
/// `unknown` in DSR modes, where answers don't pass this node. With `-o wide`: IN-TRANSITION: slots
/// whose owner has changed and that have not settled. TRACKED: slots with one owner that have, or
/// may have, exceptions. EXCEPTIONS: flows with an entry because the ring alone does not tell their
/// backend (`none` in `nat`, where every flow has an entry). RING-DIGEST: the first half is equal
/// on balancers with the same declared backends, the second half on those whose slots have the same
/// owners.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get services
  weir get services -o wide --watch 1s
  weir get services -o json | jq -r '.[].vip'")]
pub struct Services {
    #[command(flatten)]
    listing: Listing,
}

impl Services {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        self.listing.show(COLUMNS, "there are no services", async || client.get("/v1/services").await).await?;
        Ok(())
    }
}

const COLUMNS: &[Column<ServiceView>] = &[
    Column::new("NAMESPACE", |service, _| text::or_none(&service.namespace)),
    Column::new("NAME", |service, _| service.name.clone()),
    Column::new("VIP", |service, _| service.vip.to_string()),
    Column::new("PORT", |service, _| service.port.to_string()),
    Column::new("PROTO", |service, _| service.protocol.clone()),
    Column::new("MODE", |service, _| service.mode.clone()),
    Column::new("POLICY", |service, _| service.policy.clone()),
    Column::new("BACKENDS", |service, _| format!("{}/{}", service.backends_eligible, service.backends_all)),
    Column::new("CONNS", |service, _| text::known(service.connections_active)),
    Column::new("AGE", |service, _| text::duration(service.age_seconds)),
    Column::wide("PORT-NAME", |service, _| text::or_none(&service.port_name)),
    Column::wide("CONNS/S", |service, _| text::rate(service.connections_per_second)),
    Column::wide("CONNS-TOTAL", |service, _| service.connections_total.to_string()),
    Column::wide("REFUSED", |service, _| service.refused_total.to_string()),
    Column::wide("BYTES-IN", |service, _| text::bytes(service.bytes_total)),
    Column::wide("BYTES-OUT", |service, _| text::bytes(service.reply_bytes_total)),
    Column::wide("SLOTS", |service, _| service.ring_size.to_string()),
    Column::wide("IN-TRANSITION", |service, _| service.slots_in_transition.to_string()),
    Column::wide("TRACKED", |service, _| service.slots_tracked.to_string()),
    Column::wide("EXCEPTIONS", |service, _| exceptions(service)),
    Column::wide("RING-DIGEST", |service, _| service.ring_digest.clone()),
];

/// Without the flows in SEEN, which go to the backend that the ring names.
fn exceptions(service: &ServiceView) -> String {
    match (service.exceptions, service.mode == Mode::Nat.name()) {
        (_, true) => "none".to_owned(),
        (counts, _) => text::known(counts.map(|counts| counts.half_open + counts.established)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{output::Style, table::table},
        *,
    };
    use crate::view::types::ExceptionsView;

    #[test]
    fn services_have_the_columns_that_are_promised() {
        let service = ServiceView {
            namespace: String::new(),
            name: "web".to_owned(),
            port_name: String::new(),
            vip: "2001:db8::10".parse().unwrap(),
            port: 80,
            protocol: "TCP".to_owned(),
            mode: "dsr-l2".to_owned(),
            policy: "maglev".to_owned(),
            backends_eligible: 2,
            backends_all: 3,
            connections_active: None,
            connections_total: 12,
            connections_per_second: 0.0,
            packets_total: 0,
            bytes_total: 0,
            reply_packets_total: 0,
            reply_bytes_total: 0,
            refused_total: 0,
            age_seconds: 3700.0,
            ring_size: 16381,
            slots_in_transition: 0,
            slots_tracked: 0,
            exceptions: None,
            ring_digest: "00ff".to_owned(),
        };
        let expected = "\
NAMESPACE   NAME   VIP            PORT   PROTO   MODE     POLICY   BACKENDS   CONNS     AGE
none        web    2001:db8::10   80     TCP     dsr-l2   maglev   2/3        unknown   1h1m
";
        let style = Style { wide: false, headers: true, now: 0.0 };
        assert_eq!(table(COLUMNS, std::slice::from_ref(&service), style), expected);

        let exceptions = Some(ExceptionsView { half_open: 1, established: 2, seen: 40 });
        let moving = ServiceView { slots_in_transition: 8, slots_tracked: 9, exceptions, ..service };
        let shown = table(COLUMNS, &[moving], Style { wide: true, ..style });
        let (header, row) = shown.split_once('\n').unwrap();
        assert!(header.ends_with("SLOTS   IN-TRANSITION   TRACKED   EXCEPTIONS   RING-DIGEST"), "{header}");
        assert!(row.ends_with("16381   8               9         3            00ff\n"), "{row}");
    }
}
