//! `weir lookup`: what the program would do.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use super::{
    client::Client,
    output::{self, Style, View, Watch},
    table, text,
};
use crate::api::types::LookupView;

/// Say which backend the program would choose for a client, and why
///
/// Exits with 1 when it would choose none. The choice depends on the client's port, unless the service has
/// `affinity: client-ip`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir lookup 198.51.100.7:40000 192.0.2.10:80
  weir lookup '[2001:db8:1::7]:40000' '[2001:db8::10]:80' -o json")]
pub struct Lookup {
    /// The client: ADDRESS:PORT, or ADDRESS alone for a client port of 40000
    #[arg(value_parser = client_address)]
    client: SocketAddr,
    /// The VIP and port: ADDRESS:PORT, IPv6 in brackets
    #[arg(value_name = "VIP:PORT", value_parser = vip_address)]
    vip: SocketAddr,
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

/// For who gives no client port; some port is needed to compute anything.
const SOME_PORT: u16 = 40000;

#[derive(Serialize)]
struct Query {
    client: SocketAddr,
    vip: SocketAddr,
}

impl Lookup {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let query = Query { client: self.client, vip: self.vip };
        let fetch = async || client.get_with("/v1/lookup", &query).await;
        let found = output::show(&self.view, &self.watch, fetch, render).await?;
        Ok(if found.backend.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn render(found: &LookupView, _: Style) -> String {
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let backend = found.backend.map_or_else(|| "none".to_owned(), |backend| backend.to_string());
    let lines = [
        line("backend", backend),
        line("why", format!("{}: {}", found.why, found.explanation)),
        line("service", text::known(found.service.as_deref())),
        line("slot", text::known(found.slot)),
        line("client", found.client.to_string()),
        line("vip", found.vip.to_string()),
    ];
    table::aligned(None, lines)
}

fn client_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, SOME_PORT)),
        Err(_) => text.parse().map_err(|_| "write it as 198.51.100.7:40000 or '[2001:db8::7]:40000'".to_owned()),
    }
}

fn vip_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write it as 192.0.2.10:80 or '[2001:db8::10]:80'".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_shows_the_backend_first_and_then_why() {
        let found = LookupView {
            client: client_address("198.51.100.7").unwrap(),
            vip: vip_address("192.0.2.10:80").unwrap(),
            service: Some("web".to_owned()),
            slot: Some(77),
            backend: Some("10.2.0.11:8080".parse().unwrap()),
            why: "ring".to_owned(),
            explanation: "slot 77 belongs to it".to_owned(),
        };
        let expected = "\
backend   10.2.0.11:8080
why       ring: slot 77 belongs to it
service   web
slot      77
client    198.51.100.7:40000
vip       192.0.2.10:80
";
        assert_eq!(render(&found, Style { wide: false, headers: true, now: 0.0 }), expected);
    }

    #[test]
    fn addresses_without_a_port_are_refused_for_a_vip() {
        assert!(vip_address("192.0.2.10").unwrap_err().contains(":80"));
        assert_eq!(client_address("[2001:db8::7]:9").unwrap().port(), 9);
    }
}
