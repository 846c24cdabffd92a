//! The documents of `GET /v1/trace`: the query, and the reported decisions of the BPF programs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::verdict::Kind;
use serde::{Deserialize, Serialize};

/// Which decisions to report. A field that is `None` matches every decision.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceQuery {
    pub client: Option<End>,
    pub vip: Option<End>,
    /// Only packets that were dropped or rejected.
    #[serde(default)]
    pub drops_only: bool,
    /// Maximum number of decisions per second; 100 if not given.
    pub rate: Option<u32>,
}

pub const DEFAULT_RATE: u32 = 100;
/// The highest rate that the ring buffer and a reader keep up with.
pub const MAX_RATE: u32 = 100_000;

/// One end of a connection: `192.0.2.10`, `192.0.2.10:80`, `2001:db8::10`, `[2001:db8::10]:80`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub ip: IpAddr,
    /// `None` matches every port.
    pub port: Option<u16>,
}

impl End {
    fn is(&self, address: &SocketAddr) -> bool {
        self.ip == address.ip() && self.port.is_none_or(|port| port == address.port())
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let wrong = |_| format!("{text:?} is no address: write it as 192.0.2.10, 192.0.2.10:80 or [2001:db8::10]:80");
        Ok(Self { ip: bare.parse().map_err(wrong)?, port: None })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Serialize for End {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl TraceQuery {
    /// Why the query is invalid; `None` if it is valid.
    pub fn mistake(&self) -> Option<String> {
        match (self.client, self.vip) {
            (Some(client), Some(vip)) if client.ip.is_ipv4() != vip.ip.is_ipv4() => {
                return Some(format!("client {client} and vip {vip} are of different families"));
            }
            _ => {}
        }
        let rate = self.rate();
        (rate == 0 || rate > MAX_RATE).then(|| format!("a rate of {rate} can't be: 1 to {MAX_RATE} a second"))
    }

    pub fn rate(&self) -> u32 {
        self.rate.unwrap_or(DEFAULT_RATE)
    }

    /// Whether the query matches this decision. Replies count as packets of the same connection.
    pub fn fits(&self, view: &TraceView) -> bool {
        let is = |wanted: Option<End>, found: &SocketAddr| wanted.is_none_or(|wanted| wanted.is(found));
        let either_way = |src: &SocketAddr, dst: &SocketAddr| {
            (is(self.client, src) && is(self.vip, dst)) || (is(self.client, dst) && is(self.vip, src))
        };
        let fits = either_way(&view.src, &view.dst) || view.to.is_some_and(|to| either_way(&to.src, &to.dst));
        let is_refused = [Kind::Drop.name(), Kind::Reject.name()].contains(&view.verdict.as_str());
        fits && (!self.drops_only || is_refused)
    }
}

/// What a program decided for one packet, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceView {
    /// Seconds since 1970.
    pub at: f64,
    pub interface: String,
    /// Which program: `xdp`, `ingress` or `egress`.
    pub hook: String,
    /// Source and destination of the packet as it arrived; port 0 without TCP.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// Source and destination after translation in mode `nat`; `None` if they stay the same, or if
    /// the packet was not forwarded.
    pub to: Option<Ends>,
    /// `SYN`, `SYN+ACK`, `none`; `None` without TCP.
    pub tcp_flags: Option<String>,
    pub sequence: Option<u32>,
    /// Bytes from the IP header on.
    pub length: u32,
    /// The service of the VIP and port.
    pub service: Option<String>,
    pub vip: Option<SocketAddr>,
    /// `None` if no slot was consulted.
    pub slot: Option<SlotView>,
    pub backend: Option<SocketAddr>,
    /// The rule that chose the backend: see `lb_common::trace::rule::name`.
    pub rule: Option<String>,
    /// The rule in words.
    pub why: String,
    /// `pass`, `forward`, `reject` or `drop`.
    pub verdict: String,
    /// See `lb_common::verdict::Reason::name`.
    pub reason: String,
    pub help: String,
    /// Decisions since the last reported one that were not reported, because they exceeded the rate
    /// or were not read in time.
    pub missed: u64,
}

/// The source and destination of one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ends {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// A slot of a ring, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotView {
    /// The slot's number in the ring, and the number of slots in the ring.
    pub number: u32,
    pub ring_size: u32,
    /// `settled`, `in transition`, `tracked` or `settling`.
    pub state: String,
    /// `None` if the slot has no owner and rejects.
    pub current: Option<SocketAddr>,
    /// The slot's owner at the time when its two owners were last the same.
    pub previous: Option<SocketAddr>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn view(src: &str, dst: &str, verdict: &str) -> TraceView {
        TraceView {
            at: 1_700_000_000.25,
            interface: "eth0".to_owned(),
            hook: "xdp".to_owned(),
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            to: None,
            tcp_flags: Some("SYN".to_owned()),
            sequence: Some(7),
            length: 60,
            service: Some("web".to_owned()),
            vip: Some("192.0.2.10:80".parse().unwrap()),
            slot: Some(SlotView {
                number: 77,
                ring_size: 16381,
                state: "settled".to_owned(),
                current: Some("10.2.0.11:8080".parse().unwrap()),
                previous: Some("10.2.0.11:8080".parse().unwrap()),
            }),
            backend: Some("10.2.0.11:8080".parse().unwrap()),
            rule: Some("ring".to_owned()),
            why: "the owner of its slot".to_owned(),
            verdict: verdict.to_owned(),
            reason: "to_backend".to_owned(),
            help: "To a backend, by XDP.".to_owned(),
            missed: 0,
        }
    }

    #[test]
    fn ends_are_written_as_people_write_addresses() {
        for text in ["192.0.2.10", "192.0.2.10:80", "2001:db8::10", "[2001:db8::10]:80"] {
            assert_eq!(text.parse::<End>().unwrap().to_string(), text);
        }
        assert_eq!("[2001:db8::10]".parse::<End>().unwrap().port, None);
        assert!("web".parse::<End>().unwrap_err().contains("no address"));
    }

    #[test]
    fn query_fits_both_directions_of_a_connection() {
        let query = |client: Option<&str>, vip: Option<&str>, drops_only| TraceQuery {
            client: client.map(|text| text.parse().unwrap()),
            vip: vip.map(|text| text.parse().unwrap()),
            drops_only,
            rate: None,
        };
        let there = view("198.51.100.7:40000", "192.0.2.10:80", "forward");
        let back = view("192.0.2.10:80", "198.51.100.7:40000", "forward");
        for fitting in [
            query(None, None, false),
            query(Some("198.51.100.7"), None, false),
            query(Some("198.51.100.7:40000"), Some("192.0.2.10:80"), false),
            query(None, Some("192.0.2.10"), false),
        ] {
            assert!(fitting.fits(&there) && fitting.fits(&back), "{fitting:?}");
        }
        for other in [
            query(Some("198.51.100.8"), None, false),
            query(Some("198.51.100.7:1"), None, false),
            query(Some("192.0.2.10"), Some("192.0.2.10"), false),
            query(None, None, true),
        ] {
            assert!(!other.fits(&there) && !other.fits(&back), "{other:?}");
        }
        let translated = view("10.2.0.11:8080", "10.2.0.1:40000", "forward");
        let to = Some(Ends { src: there.dst, dst: there.src });
        assert!(query(Some("198.51.100.7"), None, false).fits(&TraceView { to, ..translated.clone() }));
        assert!(!query(Some("198.51.100.7"), None, false).fits(&translated));
        assert!(query(None, None, true).fits(&view("198.51.100.7:1", "192.0.2.10:80", "reject")));
    }

    #[test]
    fn impossible_queries_are_told_why() {
        let mixed = TraceQuery {
            client: Some("198.51.100.7".parse().unwrap()),
            vip: Some("2001:db8::10".parse().unwrap()),
            ..TraceQuery::default()
        };
        assert!(mixed.mistake().unwrap().contains("families"));
        assert!(TraceQuery { rate: Some(0), ..TraceQuery::default() }.mistake().unwrap().contains("1 to 100000"));
        assert_eq!(TraceQuery::default().mistake(), None);
    }
}
