use clap::Args;

use super::{
    super::{client::Client, table::Column, text},
    Listing,
};
use crate::api::types::ReasonView;

/// List why packets were dropped, rejected, passed or forwarded, and how many
///
/// KIND is what became of them: `drop` and `reject` first, then `pass` (left to the node) and `forward`. Reasons that never
/// occurred are left out without --all. `-o wide` explains each.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get drops
  weir get drops -o wide                 with an explanation of each
  weir get drops --watch 1s              PACKETS/S as it changes")]
pub struct Drops {
    /// Also reasons that never occurred
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Drops {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let fetch = async || Ok(chosen(client.get("/v1/drops").await?, self.all));
        self.listing.show(COLUMNS, "no packet has been seen yet", fetch).await?;
        Ok(())
    }
}

/// The worst first, then the most frequent.
fn chosen(mut reasons: Vec<ReasonView>, all: bool) -> Vec<ReasonView> {
    reasons.retain(|reason| all || reason.packets_total > 0);
    let rank = |kind: &str| ["drop", "reject", "pass", "forward"].iter().position(|known| *known == kind);
    reasons.sort_by_key(|reason| (rank(&reason.kind).unwrap_or(usize::MAX), std::cmp::Reverse(reason.packets_total)));
    reasons
}

const COLUMNS: &[Column<ReasonView>] = &[
    Column::new("INTERFACE", |reason, _| reason.interface.clone()),
    Column::new("KIND", |reason, _| reason.kind.clone()),
    Column::new("REASON", |reason, _| reason.reason.clone()),
    Column::new("PACKETS", |reason, _| reason.packets_total.to_string()),
    Column::new("PACKETS/S", |reason, _| text::rate(reason.packets_per_second)),
    Column::wide("HELP", |reason, _| reason.help.clone()),
];

#[cfg(test)]
mod tests {
    use lb_common::verdict::Reason;

    use super::{
        super::super::{output::Style, table::table},
        *,
    };

    fn seen(reason: Reason, packets_total: u64) -> ReasonView {
        ReasonView {
            interface: "eth0".to_owned(),
            kind: reason.kind().name().to_owned(),
            reason: reason.name().to_owned(),
            help: reason.help().to_owned(),
            packets_total,
            packets_per_second: 0.5,
        }
    }

    #[test]
    fn drops_come_first_and_what_never_occurred_not_at_all() {
        let reasons = vec![
            seen(Reason::NotVip, 9),
            seen(Reason::ToBackend, 5),
            seen(Reason::NoRoute, 1),
            seen(Reason::TooBig, 0),
        ];
        let expected = "\
INTERFACE   KIND      REASON       PACKETS   PACKETS/S   HELP
eth0        drop      no_route     1         0.5         No route to the backend or the client, or forwarding is off on the interface where the packet came in.
eth0        pass      not_vip      9         0.5         Not addressed to a VIP, nor an answer to one of our flows: untouched.
eth0        forward   to_backend   5         0.5         To a backend, by XDP.
";
        let style = Style { wide: true, headers: true, now: 0.0 };
        assert_eq!(table(COLUMNS, &chosen(reasons.clone(), false), style), expected);
        assert_eq!(chosen(reasons, true).len(), 4);
    }
}
