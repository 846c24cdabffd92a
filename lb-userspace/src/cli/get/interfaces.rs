use clap::Args;

use super::{
    super::{client::Client, table::Column, text},
    listing::Listing,
};
use crate::view::types::InterfaceView;

/// List the interfaces that Weir is attached to
///
/// XDP is the mode of the program on the interface: `native`, `generic`, or `none` if its hook is
/// lost. TC is `tcx`, `clsact` or `none`. The other columns count packets by verdict.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir get interfaces
  weir get interfaces -o json | jq '.[] | select(.problem != \"\")'")]
pub struct Interfaces {
    #[command(flatten)]
    listing: Listing,
}

impl Interfaces {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let fetch = async || client.get("/v1/interfaces").await;
        self.listing.show(COLUMNS, "attached to no interface", fetch).await?;
        Ok(())
    }
}

const COLUMNS: &[Column<InterfaceView>] = &[
    Column::new("INTERFACE", |interface, _| interface.name.clone()),
    Column::new("XDP", |interface, _| interface.xdp_mode.clone()),
    Column::new("TC", |interface, _| interface.tc.clone()),
    Column::new("PASS", |interface, _| packets(interface, "pass")),
    Column::new("FORWARD", |interface, _| packets(interface, "forward")),
    Column::new("REJECT", |interface, _| packets(interface, "reject")),
    Column::new("DROP", |interface, _| packets(interface, "drop")),
    Column::new("PROBLEM", |interface, _| text::or_none(&interface.problem)),
    Column::wide("IFINDEX", |interface, _| interface.ifindex.to_string()),
    Column::wide("MTU", |interface, _| interface.mtu.to_string()),
];

fn packets(interface: &InterfaceView, action: &str) -> String {
    text::known(interface.actions.iter().find(|(name, _)| name == action).map(|(_, count)| count))
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{output::Style, table::table},
        *,
    };

    #[test]
    fn interfaces_show_mode_counts_and_trouble() {
        let interface = InterfaceView {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: "native".to_owned(),
            tc: "tcx".to_owned(),
            mtu: 1500,
            actions: vec![("pass".to_owned(), 7), ("forward".to_owned(), 100), ("drop".to_owned(), 0)],
            problem: String::new(),
        };
        let expected = "\
INTERFACE   XDP      TC    PASS   FORWARD   REJECT    DROP   PROBLEM   IFINDEX   MTU
eth0        native   tcx   7      100       unknown   0      none      2         1500
";
        assert_eq!(table(COLUMNS, &[interface], Style { wide: true, headers: true, now: 0.0 }), expected);
    }
}
