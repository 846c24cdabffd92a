//! `weir trace`: shows the programs' decisions as they happen.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::time::{Instant, sleep_until};

use super::{
    client::{Client, Lines},
    output::{self, Format},
    text,
};
use crate::view::trace::{DEFAULT_RATE, End, SlotView, TraceQuery, TraceView};

/// Show the programs' decisions about packets as they are made, one per line
///
/// Each line shows the time (UTC), interface and program, source and destination of the packet as
/// it arrived, TCP flags, length, and the rewritten addresses in mode `nat`; then the service, slot
/// and backend with the reason for this backend; then the verdict. Packets that do not concern Weir
/// are not shown. Of much traffic the trace is a sample: at most --rate decisions a second are
/// shown, and the others are counted. While no trace runs, it costs packets nothing.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir trace --client 198.51.100.7
  weir trace --vip 192.0.2.10:80 --drops-only     what was dropped or rejected, and why
  weir trace --vip 2001:db8::10 --count 20 -o wide
  weir trace --for 10s -o json | jq -r .backend | sort | uniq -c")]
pub struct Trace {
    /// Only packets from or to this client: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    client: Option<End>,
    /// Only packets to or from this VIP: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    vip: Option<End>,
    /// Only packets that were dropped or rejected
    #[arg(long)]
    drops_only: bool,
    /// Show at most this many decisions a second
    #[arg(long, env = "WEIR_RATE", value_name = "N", default_value_t = DEFAULT_RATE)]
    rate: u32,
    /// Stop after this many lines
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time (10s, 2m)
    #[arg(long = "for", value_name = "DURATION", value_parser = output::interval)]
    time: Option<Duration>,
    /// The output format; wide adds explanations, json prints one object per line
    #[arg(short, long, value_enum, env = "WEIR_OUTPUT", default_value_t)]
    output: Format,
}

/// What was shown.
#[derive(Default)]
struct Tally {
    told: u64,
    missed: u64,
    /// The agent ended it.
    broke_off: bool,
}

impl Trace {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let query =
            TraceQuery { client: self.client, vip: self.vip, drops_only: self.drops_only, rate: Some(self.rate) };
        let mut lines = client.lines("/v1/trace", &query).await?;
        if self.count.is_none() && self.time.is_none() {
            eprintln!("tracing; Ctrl-C ends it");
        }
        let tally = self.show(&mut lines).await?;
        eprintln!("{}", summary(&tally, self.rate));
        if tally.broke_off {
            bail!("the agent at {} has stopped", client.path());
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn show(&self, lines: &mut Lines<TraceView>) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let end = self.time.map(|time| Instant::now() + time);
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        while self.count.is_none_or(|count| tally.told < count) {
            let view = tokio::select! {
                biased;
                heard = &mut interrupted => {
                    heard.context("cannot listen for Ctrl-C")?;
                    break;
                }
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
                view = lines.next() => view?,
            };
            let Some(view) = view else {
                tally.broke_off = true;
                break;
            };
            tally.told += 1;
            tally.missed += view.missed;
            output::print(&self.text(&view)?)?;
        }
        Ok(tally)
    }

    fn text(&self, view: &TraceView) -> anyhow::Result<String> {
        Ok(match self.output {
            Format::Table => line(view, false) + "\n",
            Format::Wide => line(view, true) + "\n",
            Format::Json => serde_json::to_string(view).context("cannot write it as JSON")? + "\n",
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(view).context("cannot write it as YAML")?),
        })
    }
}

fn summary(tally: &Tally, rate: u32) -> String {
    let told = text::counted(tally.told, "decision");
    if tally.missed == 0 {
        return format!("{told} told, none left out");
    }
    format!("{told} told, at least {} left out: more than {rate} a second (--rate), or not read in time", tally.missed)
}

fn line(view: &TraceView, is_wide: bool) -> String {
    let TraceView { interface, hook, src, dst, length, verdict, reason, why, .. } = view;
    let mut text = format!("{} {interface} {hook} ", text::instant(view.at));
    match &view.tcp_flags {
        Some(flags) => text.push_str(&format!("{src} -> {dst} {flags}")),
        // A packet without TCP has no ports.
        None => text.push_str(&format!("{} -> {} no TCP", src.ip(), dst.ip())),
    }
    if let Some(sequence) = view.sequence.filter(|_| is_wide) {
        text.push_str(&format!(" seq {sequence}"));
    }
    text.push_str(&format!(" len {length}"));
    if let Some(to) = view.to {
        text.push_str(&format!(" as {} -> {}", to.src, to.dst));
    }
    if let Some(service) = &view.service {
        text.push_str(&format!("; service {service}"));
    }
    if let Some(slot) = &view.slot {
        text.push_str(&format!(" slot {}", slot_words(slot, is_wide)));
    }
    if let Some(backend) = view.backend {
        text.push_str(&format!(" backend {backend}"));
    }
    if !why.is_empty() {
        text.push_str(&format!(" ({why})"));
    }
    text.push_str(&format!("; {verdict}: {reason}"));
    if is_wide {
        text.push_str(&format!(" ({})", view.help.trim_end_matches('.')));
    }
    if view.missed > 0 {
        text.push_str(&format!("; {} before it left out", view.missed));
    }
    text
}

/// `77 of 16381 (in transition, from 10.2.0.11:80 to 10.2.0.12:80)`.
pub(super) fn slot_words(slot: &SlotView, is_wide: bool) -> String {
    let owner = |owner: Option<std::net::SocketAddr>| owner.map_or_else(|| "nobody".to_owned(), |at| at.to_string());
    let SlotView { number, ring_size, state, current, previous } = slot;
    if !is_wide {
        return format!("{number} ({state})");
    }
    if current == previous {
        return format!("{number} of {ring_size} ({state}, of {})", owner(*current));
    }
    format!("{number} of {ring_size} ({state}, from {} to {})", owner(*previous), owner(*current))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::trace::{Ends, tests::view};

    #[test]
    fn line_says_packet_service_slot_backend_why_and_what_became_of_it() {
        let there = view("198.51.100.7:40000", "192.0.2.10:80", "forward");
        assert_eq!(
            line(&there, false),
            "2023-11-14T22:13:20.250000Z eth0 xdp 198.51.100.7:40000 -> 192.0.2.10:80 SYN len 60; \
             service web slot 77 (settled) backend 10.2.0.11:8080 (the owner of its slot); forward: to_backend"
        );
        let to = Some(Ends { src: "10.2.0.1:40000".parse().unwrap(), dst: "10.2.0.11:8080".parse().unwrap() });
        let translated = line(&TraceView { to, ..there.clone() }, false);
        assert!(translated.contains(" SYN len 60 as 10.2.0.1:40000 -> 10.2.0.11:8080; service web"), "{translated}");
        assert_eq!(
            line(&TraceView { missed: 3, ..there }, true),
            "2023-11-14T22:13:20.250000Z eth0 xdp 198.51.100.7:40000 -> 192.0.2.10:80 SYN seq 7 len 60; \
             service web slot 77 of 16381 (settled, of 10.2.0.11:8080) backend 10.2.0.11:8080 (the owner of its slot); \
             forward: to_backend (To a backend, by XDP); 3 before it left out"
        );
    }

    #[test]
    fn line_of_what_is_nobodys_has_no_service_and_no_ports() {
        let stranger = TraceView {
            tcp_flags: None,
            sequence: None,
            service: None,
            vip: None,
            slot: None,
            backend: None,
            rule: None,
            why: String::new(),
            reason: "not_vip".to_owned(),
            ..view("[2001:db8:1::7]:0", "[2001:db8::99]:0", "pass")
        };
        let expected =
            "2023-11-14T22:13:20.250000Z eth0 xdp 2001:db8:1::7 -> 2001:db8::99 no TCP len 60; pass: not_vip";
        assert_eq!(line(&stranger, false), expected);
    }

    #[test]
    fn summary_says_what_was_left_out() {
        assert_eq!(summary(&Tally { told: 1, ..Tally::default() }, 100), "1 decision told, none left out");
        let some = summary(&Tally { told: 5, missed: 90, broke_off: false }, 100);
        assert!(some.starts_with("5 decisions told, at least 90 left out"), "{some}");
    }
}
