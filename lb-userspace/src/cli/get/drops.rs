use clap::Args;
use lb_common::verdict::Kind;
use serde::Serialize;

use super::{
    super::{client::Client, table::Column, text},
    listing::Listing,
};
use crate::view::types::{DropsBy, ReasonView};

/// List the reasons for which packets were dropped, rejected, passed or forwarded, with counts
///
/// KIND is what happened to the packets: `drop` and `reject` come first, then `pass` (left to the
/// node) and `forward`. SERVICE is `none` for packets to a VIP and port without a service, and
/// `all` for forwarded packets (`weir get services -o wide` counts these by service). Reasons that
/// never occurred are shown only with --all. `-o wide` explains each reason.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get drops
  weir get drops -o wide                 with an explanation of each
  weir get drops --watch 1s              PACKETS/S as it changes
  weir get drops --by interface          where they came in")]
pub struct Drops {
    /// Also show reasons that never occurred
    #[arg(long)]
    all: bool,
    /// What to count packets by
    #[arg(long, value_enum, default_value_t)]
    by: DropsBy,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Serialize)]
struct DropsQuery {
    by: DropsBy,
}

impl Drops {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let query = DropsQuery { by: self.by };
        let fetch = async || Ok(chosen(client.get_with("/v1/drops", &query).await?, self.all));
        let columns = match self.by {
            DropsBy::Service => BY_SERVICE,
            DropsBy::Interface => BY_INTERFACE,
        };
        self.listing.show(columns, "no packet has been seen yet", fetch).await?;
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

const INTERFACE: Column<ReasonView> = Column::new("INTERFACE", |reason, _| text::known(reason.interface.as_deref()));
const SERVICE: Column<ReasonView> = Column::new("SERVICE", |reason, _| whose(reason, reason.service.as_deref()));
const VIP: Column<ReasonView> = Column::new("VIP", |reason, _| whose(reason, reason.vip));
const KIND: Column<ReasonView> = Column::new("KIND", |reason, _| reason.kind.clone());
const REASON: Column<ReasonView> = Column::new("REASON", |reason, _| reason.reason.clone());
const PACKETS: Column<ReasonView> = Column::new("PACKETS", |reason, _| reason.packets_total.to_string());
const RATE: Column<ReasonView> = Column::new("PACKETS/S", |reason, _| text::rate(reason.packets_per_second));
const HELP: Column<ReasonView> = Column::wide("HELP", |reason, _| reason.help.clone());

const BY_SERVICE: &[Column<ReasonView>] = &[SERVICE, VIP, KIND, REASON, PACKETS, RATE, HELP];
const BY_INTERFACE: &[Column<ReasonView>] = &[INTERFACE, KIND, REASON, PACKETS, RATE, HELP];

fn whose(reason: &ReasonView, known: Option<impl ToString>) -> String {
    let nobodys = if reason.kind == Kind::Forward.name() { "all" } else { "none" };
    known.map_or_else(|| nobodys.to_owned(), |known| known.to_string())
}

#[cfg(test)]
mod tests {
    use lb_common::verdict::Reason;

    use super::{
        super::super::{output::Style, table::table},
        *,
    };

    fn seen(reason: Reason, packets_total: u64) -> ReasonView {
        ReasonView {
            interface: Some("eth0".to_owned()),
            service: None,
            vip: None,
            kind: reason.kind().name().to_owned(),
            reason: reason.name().to_owned(),
            help: reason.help().to_owned(),
            packets_total,
            packets_per_second: 0.5,
        }
    }

    const STYLE: Style = Style { wide: false, headers: true, now: 0.0 };

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
eth0        drop      no_route     1         0.5         No route to the backend or the client, or forwarding \
            is off on the interface where the packet came in.
eth0        pass      not_vip      9         0.5         Not addressed to a VIP, nor an answer to one of our \
            flows: untouched.
eth0        forward   to_backend   5         0.5         To a backend, by XDP.
";
        let style = Style { wide: true, ..STYLE };
        assert_eq!(table(BY_INTERFACE, &chosen(reasons.clone(), false), style), expected);
        assert_eq!(chosen(reasons, true).len(), 4);
    }

    #[test]
    fn service_is_named_where_it_is_known() {
        let of_web = ReasonView {
            service: Some("web".to_owned()),
            vip: Some("[2001:db8::10]:80".parse().unwrap()),
            ..seen(Reason::NoBackend, 2)
        };
        let expected = "\
SERVICE   VIP                 KIND      REASON       PACKETS   PACKETS/S
web       [2001:db8::10]:80   reject    no_backend   2         0.5
none      none                pass      not_vip      9         0.5
all       all                 forward   to_backend   5         0.5
";
        let rows = [of_web, seen(Reason::NotVip, 9), seen(Reason::ToBackend, 5)];
        assert_eq!(table(BY_SERVICE, &rows, STYLE), expected);
    }
}
