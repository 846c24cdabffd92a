//! Reads how a service's backends are probed.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    fields::{Value, time},
    range,
};
use crate::model::{HealthCheck, HttpProbe, Probe};

pub const KEYS: [&str; 6] = ["http", "tcp", "interval", "timeout", "fall", "rise"];
pub const HTTP_KEYS: [&str; 3] = ["path", "host", "expect"];

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
    let interval = fields.or("interval", Duration::from_secs(2), |value| value.duration(PROBE_TIMES));
    let timeout = match (fields.optional("timeout"), interval) {
        (Some(value), interval) => value.duration(PROBE_TIMES).and_then(|timeout| match interval {
            Some(interval) if timeout > interval => {
                value.problem(format!("must not be longer than the interval, {}, is {}", time(interval), time(timeout)))
            }
            _ => Some(timeout),
        }),
        (None, interval) => interval.map(|interval| interval.min(Duration::from_secs(1))),
    };
    let fall = fields.or("fall", 3, |value| value.integer(1..=100));
    let rise = fields.or("rise", 2, |value| value.integer(1..=100));
    Some(HealthCheck { probe: probe?, interval: interval?, timeout: timeout?, fall: fall?, rise: rise? })
}

fn http_probe(value: &Value<'_>) -> Option<HttpProbe> {
    let fields = value.fields_or_empty(&HTTP_KEYS)?;
    let path = fields.or("path", "/".to_owned(), |value| {
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
    let expect = fields.or("expect", (200, 399), |value| {
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
