use std::net::IpAddr;

use clap::Args;

use super::{
    super::{client::Client, table::Column, text},
    listing::Listing,
};
use crate::view::types::{BackendSelector, FlowFilter, FlowView};

/// List the flows that have an entry in a flow table
///
/// WHY is the reason for the entry. In mode `nat`, every flow has an entry (`nat`). In DSR modes,
/// only exceptions have one: flows that `opened in transition` (while their slot was changing
/// owners, so that the slot alone does not tell the backend), and flows that were `kept when its
/// slot settled`. All other flows go to the backend that the ring names: see `weir lookup`. AGE is
/// not known for any flow yet.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get flows --backend web/10.2.0.11:8080
  weir get flows --client 198.51.100.7 -o wide
  weir get flows --vip 2001:db8::10 --limit 20
  weir get flows --seen -o json | jq -r '.[].why' | sort | uniq -c")]
pub struct Flows {
    /// Only flows of this client
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// Only flows to this backend: SERVICE/ADDRESS:PORT, ADDRESS:PORT or ADDRESS
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only flows to this VIP
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<IpAddr>,
    /// Also show flows that were `seen in transition`: old flows in a slot that is changing owners,
    /// which go to the backend that the ring names
    #[arg(long)]
    seen: bool,
    /// Show at most this many flows
    #[arg(long, env = "WEIR_LIMIT", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    listing: Listing,
}

impl Flows {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let filter = FlowFilter {
            client: self.client,
            backend: self.backend.map(BackendSelector),
            vip: self.vip,
            seen: self.seen,
            limit: Some(self.limit),
        };
        let fetch = async || client.get_with("/v1/flows", &filter).await;
        let flows = self.listing.show(COLUMNS, "no flow fits", fetch).await?;
        if flows.len() == self.limit {
            eprintln!("these are the first {}; --limit shows more", self.limit);
        }
        Ok(())
    }
}

const COLUMNS: &[Column<FlowView>] = &[
    Column::new("CLIENT", |flow, _| flow.client.to_string()),
    Column::new("VIP", |flow, _| flow.vip.to_string()),
    Column::new("BACKEND", |flow, _| flow.backend.to_string()),
    Column::new("WHY", |flow, _| flow.why.clone()),
    Column::new("AGE", |flow, _| text::known(flow.age_seconds.map(text::duration))),
    Column::new("IDLE", |flow, _| text::duration(flow.idle_seconds)),
    Column::wide("SERVICE", |flow, _| flow.service.clone()),
    Column::wide("STATE", |flow, _| flow.state.clone()),
    Column::wide("SOURCE", |flow, _| flow.source.to_string()),
];

#[cfg(test)]
mod tests {
    use super::{
        super::super::{output::Style, table::table},
        *,
    };

    #[test]
    fn flows_have_the_columns_that_are_promised() {
        let flow = FlowView {
            client: "198.51.100.7:40000".parse().unwrap(),
            vip: "192.0.2.10:80".parse().unwrap(),
            service: "web".to_owned(),
            backend: "10.2.0.11:8080".parse().unwrap(),
            source: "10.2.0.1:40000".parse().unwrap(),
            state: "established".to_owned(),
            why: "nat".to_owned(),
            age_seconds: None,
            idle_seconds: 4.0,
        };
        let expected = "\
CLIENT               VIP             BACKEND          WHY   AGE       IDLE   SERVICE   STATE         SOURCE
198.51.100.7:40000   192.0.2.10:80   10.2.0.11:8080   nat   unknown   4s     web       established   10.2.0.1:40000
";
        assert_eq!(table(COLUMNS, &[flow], Style { wide: true, headers: true, now: 0.0 }), expected);
    }
}
