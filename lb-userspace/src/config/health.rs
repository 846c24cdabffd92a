//! Reads how a service's backends are probed.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    fields::{Value, time},
    range,
};
use crate::model::{HealthCheck, HttpProbe, Probe};

pub const KEYS: [&str; 6] = ["http", "tcp", "interval", "timeout", "fall", "rise"];
pub const HTTP_KEYS: [&str; 3] = ["path", "host", "expect"];

pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
pub const DEFAULT_FALL: u32 = 3;
pub const DEFAULT_RISE: u32 = 2;
/// Bounds of `fall` and `rise`: numbers of results in a row.
pub const RESULTS: RangeInclusive<u32> = 1..=100;
pub const DEFAULT_PATH: &str = "/";
/// The default range of status codes that mean up.
pub const DEFAULT_EXPECT: (u16, u16) = (200, 399);
const PROBE_TIMES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// Reads the health check of a service.
pub fn read(value: &Value<'_>) -> Option<HealthCheck> {
    let fields = value.fields(&KEYS)?;
    let probe = match (fields.given("http"), fields.given("tcp")) {
        (Some(http), None) => http_probe(&http).map(Probe::Http),
        (None, Some(tcp)) => tcp.fields_or_empty(&[]).map(|_| Probe::Tcp),
        (None, None) => value.problem("must say how to probe: http: {...} or tcp: {}"),
        (Some(_), Some(tcp)) => tcp.problem("probe by http or by tcp, not by both"),
    };
    let interval = fields.or("interval", DEFAULT_INTERVAL, |value| value.duration(PROBE_TIMES));
    let timeout = match (fields.optional("timeout"), interval) {
        (Some(value), interval) => value.duration(PROBE_TIMES).and_then(|timeout| match interval {
            Some(interval) if timeout > interval => {
                value.problem(format!("must not be longer than the interval, {}, is {}", time(interval), time(timeout)))
            }
            _ => Some(timeout),
        }),
        (None, interval) => interval.map(|interval| interval.min(DEFAULT_TIMEOUT)),
    };
    let fall = fields.or("fall", DEFAULT_FALL, |value| value.integer(RESULTS));
    let rise = fields.or("rise", DEFAULT_RISE, |value| value.integer(RESULTS));
    Some(HealthCheck { probe: probe?, interval: interval?, timeout: timeout?, fall: fall?, rise: rise? })
}

fn http_probe(value: &Value<'_>) -> Option<HttpProbe> {
    let fields = value.fields_or_empty(&HTTP_KEYS)?;
    let path = fields.or("path", DEFAULT_PATH.to_owned(), |value| {
        let text = value.text()?;
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if text.starts_with('/') && plain {
            Some(text.to_owned())
        } else {
            value.problem(format!(
                "must begin with / and hold no spaces or #, others than ASCII percent-encoded, is {text:?}"
            ))
        }
    });
    let host = fields.or("host", None, |value| {
        let text = value.text()?;
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
            return Some(Some(text.to_owned()));
        }
        value.problem(format!("must be a host name, with or without a port, is {text:?}"))
    });
    let expect = fields.or("expect", DEFAULT_EXPECT, |value| {
        let text = value.text()?;
        match range::parse(text).filter(|(first, last)| (100..=599).contains(first) && *last <= 599) {
            Some(range) => Some(range),
            None => {
                value.problem(format!("must be a status of 100 to 599 or a range of them, as in 200-399, is {text}"))
            }
        }
    });
    Some(HttpProbe { path: path?, host: host?, expect: expect? })
}
