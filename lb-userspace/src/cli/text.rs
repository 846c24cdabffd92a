//! Formats numbers and times for people.

use std::{
    fmt::Display,
    time::{Duration, UNIX_EPOCH},
};

/// The value, or `unknown` if there is none.
pub fn known<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

/// A text that may be empty.
pub fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}

/// `850ms`, `12s`, `5m3s`, `3h12m`, `2d4h`: the two largest units.
pub fn duration(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    let whole = duration.as_secs();
    if whole == 0 && !duration.is_zero() {
        return format!("{}ms", duration.as_millis());
    }
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = UNITS.iter().position(|(length, _)| whole >= *length).unwrap_or(UNITS.len() - 1);
    let mut rest = whole;
    let mut text = String::new();
    for (length, name) in UNITS.iter().skip(first).take(2) {
        let count = rest / length;
        rest %= length;
        if count > 0 || text.is_empty() {
            text.push_str(&format!("{count}{name}"));
        }
    }
    text
}

/// How long ago `at` was.
pub fn ago(at: f64, now: f64) -> String {
    format!("{} ago", duration(now - at))
}

/// A moment, to the second, in UTC.
pub fn moment(at: f64) -> String {
    match Duration::try_from_secs_f64(at) {
        Ok(since) => humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string(),
        Err(_) => "unknown".to_owned(),
    }
}

/// A moment, to the microsecond, in UTC: as the agent's log has it.
pub fn instant(at: f64) -> String {
    match Duration::try_from_secs_f64(at) {
        Ok(since) => humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string(),
        Err(_) => "unknown".to_owned(),
    }
}

/// `999`, `1.5Ki`, `20.0Mi`.
pub fn bytes(count: u64) -> String {
    let mut scaled = count as f64;
    let mut unit = "";
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi"] {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit.is_empty() { count.to_string() } else { format!("{scaled:.1}{unit}") }
}

/// A rate, with decimals only where they matter.
pub fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

/// A share of one as percent.
pub fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// `1 connection`, `3 connections`.
pub fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        let shown: Vec<String> =
            [-1.0, 0.0, 0.0123, 12.9, 303.0, 3600.0, 11_520.0, 187_200.0, f64::NAN].into_iter().map(duration).collect();
        assert_eq!(shown, ["0s", "0s", "12ms", "12s", "5m3s", "1h", "3h12m", "2d4h", "0s"]);
    }

    #[test]
    fn bytes_rates_and_moments_are_short() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(20 << 20)], ["0", "1023", "1.5Ki", "20.0Mi"]);
        assert_eq!([rate(0.0), rate(0.25), rate(9.96), rate(1234.5)], ["0", "0.2", "10.0", "1234"]);
        assert_eq!(moment(1_700_000_000.4), "2023-11-14T22:13:20Z");
    }
}
