use clap::Args;

use super::{
    super::{client::Client, table::Column, text},
    Listing,
};
use crate::api::types::ServiceView;

/// List services, a line for each VIP and port
///
/// BACKENDS is how many get new flows, of how many. CONNS is connections open now; `unknown` in DSR modes, where answers
/// don't pass here.
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
    Column::wide("CONNS/S", |service, _| text::rate(service.connections_per_second)),
    Column::wide("CONNS-TOTAL", |service, _| service.connections_total.to_string()),
    Column::wide("REFUSED", |service, _| service.refused_total.to_string()),
    Column::wide("BYTES-IN", |service, _| text::bytes(service.bytes_total)),
    Column::wide("BYTES-OUT", |service, _| text::bytes(service.reply_bytes_total)),
    Column::wide("SLOTS", |service, _| service.ring_size.to_string()),
    Column::wide("IN-TRANSITION", |service, _| service.slots_in_transition.to_string()),
    Column::wide("RING-DIGEST", |service, _| service.ring_digest.clone()),
];

#[cfg(test)]
mod tests {
    use super::{
        super::super::{output::Style, table::table},
        *,
    };

    #[test]
    fn services_have_the_columns_that_are_promised() {
        let service = ServiceView {
            namespace: String::new(),
            name: "web".to_owned(),
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
            ring_digest: "00ff".to_owned(),
        };
        let expected = "\
NAMESPACE   NAME   VIP            PORT   PROTO   MODE     POLICY   BACKENDS   CONNS     AGE
none        web    2001:db8::10   80     TCP     dsr-l2   maglev   2/3        unknown   1h1m
";
        assert_eq!(table(COLUMNS, &[service], Style { wide: false, headers: true, now: 0.0 }), expected);
    }
}
