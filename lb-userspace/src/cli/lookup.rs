//! `weir lookup`: shows what the program would do with a client's packets.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;

use super::{
    client::Client,
    output::{self, Style, View, Watch},
    table, text,
    trace::slot_words,
};
use crate::view::types::{FlowView, LookupQuery, LookupView};

/// Show which backend the program would choose for a client, and why
///
/// The answer has two parts: for a new connection (`backend`), and for a packet of a connection
/// that began before (`under way`). They differ while a slot changes owners, and for flows with an
/// entry in a flow table. Exits with 1 if a new connection would get no backend. The choice depends
/// on the client's port, unless the service has `affinity: client-ip`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir lookup 198.51.100.7:40000 192.0.2.10:80
  weir lookup 198.51.100.7:40000 192.0.2.10:80 --sequence 305419896   (from `weir trace -o wide`: was it sent before?)
  weir lookup '[2001:db8:1::7]:40000' '[2001:db8::10]:80' -o json")]
pub struct Lookup {
    /// The client: ADDRESS:PORT, or ADDRESS alone for the client port 40000
    #[arg(value_parser = client_address)]
    client: SocketAddr,
    /// The VIP and port: ADDRESS:PORT, with IPv6 addresses in brackets
    #[arg(value_name = "VIP:PORT", value_parser = vip_address)]
    vip: SocketAddr,
    /// The sequence number of the SYN: a retransmitted SYN goes to the backend of the first one
    #[arg(long, value_name = "NUMBER")]
    sequence: Option<u32>,
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    watch: Watch,
}

/// The client's port if none is given; the hash needs one.
const SOME_PORT: u16 = 40000;

impl Lookup {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let query = LookupQuery { client: self.client, vip: self.vip, sequence: self.sequence };
        let fetch = async || client.get_with("/v1/lookup", &query).await;
        let found = output::show(&self.view, &self.watch, fetch, render).await?;
        Ok(if found.backend.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn render(found: &LookupView, _: Style) -> String {
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let at = |backend: Option<SocketAddr>| backend.map_or_else(|| "none".to_owned(), |backend| backend.to_string());
    let mut lines =
        vec![line("backend", at(found.backend)), line("why", format!("{}: {}", found.why, found.explanation))];
    let under_way = &found.under_way;
    if (under_way.backend, &under_way.explanation) == (found.backend, &found.explanation) {
        lines.push(line("under way", "the same".to_owned()));
    } else {
        lines.push(line("under way", at(under_way.backend)));
        lines.push(line("why", format!("{}: {}", under_way.why, under_way.explanation)));
    }
    let service = text::or_none(found.service.as_deref().unwrap_or_default());
    lines.push(line("service", found.mode.iter().fold(service, |name, mode| format!("{name} ({mode})"))));
    let slot = found.slot.as_ref().map_or_else(|| "none".to_owned(), |slot| slot_words(slot, true));
    lines.push(line("slot", slot));
    lines.extend(found.entries.iter().map(|entry| line("entry", entry_words(entry))));
    lines.push(line("client", found.client.to_string()));
    lines.push(line("vip", found.vip.to_string()));
    table::aligned(None, lines)
}

fn entry_words(entry: &FlowView) -> String {
    let FlowView { state, why, backend, idle_seconds, .. } = entry;
    format!("{state} ({why}), to {backend}, idle {}", text::duration(*idle_seconds))
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
    use crate::view::{trace::SlotView, types::Choice};

    fn found() -> LookupView {
        LookupView {
            client: client_address("198.51.100.7").unwrap(),
            vip: vip_address("192.0.2.10:80").unwrap(),
            service: Some("web".to_owned()),
            mode: Some("dsr-l2".to_owned()),
            slot: Some(SlotView {
                number: 77,
                ring_size: 16381,
                state: "in transition".to_owned(),
                current: "10.2.0.12:80".parse().ok(),
                previous: "10.2.0.11:80".parse().ok(),
            }),
            backend: "10.2.0.12:80".parse().ok(),
            why: "current".to_owned(),
            explanation: "its present owner".to_owned(),
            under_way: Choice {
                backend: "10.2.0.11:80".parse().ok(),
                why: "established".to_owned(),
                explanation: "the flow has an entry".to_owned(),
            },
            entries: vec![FlowView {
                client: client_address("198.51.100.7").unwrap(),
                vip: vip_address("192.0.2.10:80").unwrap(),
                service: "web".to_owned(),
                backend: "10.2.0.11:80".parse().unwrap(),
                source: client_address("198.51.100.7").unwrap(),
                state: "closing".to_owned(),
                why: "opened in transition".to_owned(),
                age_seconds: None,
                idle_seconds: 4.0,
            }],
        }
    }

    const STYLE: Style = Style { wide: false, headers: true, now: 0.0 };

    #[test]
    fn lookup_shows_where_new_connections_go_and_where_old_ones_and_why() {
        let expected = "\
backend     10.2.0.12:80
why         current: its present owner
under way   10.2.0.11:80
why         established: the flow has an entry
service     web (dsr-l2)
slot        77 of 16381 (in transition, from 10.2.0.11:80 to 10.2.0.12:80)
entry       closing (opened in transition), to 10.2.0.11:80, idle 4s
client      198.51.100.7:40000
vip         192.0.2.10:80
";
        assert_eq!(render(&found(), STYLE), expected);
    }

    #[test]
    fn lookup_says_once_what_holds_for_both() {
        let mut settled = found();
        settled.under_way =
            Choice { backend: settled.backend, why: settled.why.clone(), explanation: settled.explanation.clone() };
        settled.entries.clear();
        let text = render(&settled, STYLE);
        assert!(text.contains("under way   the same\nservice"), "{text}");
    }

    #[test]
    fn addresses_without_a_port_are_refused_for_a_vip() {
        assert!(vip_address("192.0.2.10").unwrap_err().contains(":80"));
        assert_eq!(client_address("[2001:db8::7]:9").unwrap().port(), 9);
    }
}
