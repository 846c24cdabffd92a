//! The load generators that people know: wrk, iperf3, curl.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{netns::Netns, process::check};

/// What wrk measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Wrk {
    pub requests_per_second: f64,
    pub requests: u64,
    /// Socket errors of any kind and answers other than 2xx and 3xx.
    pub errors: u64,
}

/// `wrk` from inside a namespace. `keep_alive: false` asks for a new connection per request.
pub fn wrk(client: &Netns, url: &str, connections: u32, time: Duration, keep_alive: bool) -> Result<Wrk> {
    let mut command = client.command("wrk");
    command.args(["-t", "2", "-c", &connections.to_string(), "-d", &format!("{}s", time.as_secs())]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    let text = check(command.arg(url))?;
    parse_wrk(&text).with_context(|| format!("wrk printed {text:?}"))
}

fn parse_wrk(text: &str) -> Result<Wrk> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let numbers =
        |line: &str| line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
    let requests = text.lines().find(|line| line.contains(" requests in ")).context("no total")?;
    Ok(Wrk {
        requests_per_second: after("Requests/sec:").context("no rate")?.parse()?,
        requests: requests.split_whitespace().next().context("no number")?.parse()?,
        errors: after("Socket errors:").map_or(0, numbers) + after("Non-2xx or 3xx responses:").map_or(0, numbers),
    })
}

/// Bits per second that the receiver got through one `iperf3` connection; `reverse` sends from the
/// server.
pub fn iperf(client: &Netns, server: IpAddr, time: Duration, reverse: bool) -> Result<f64> {
    iperf_with(client, server, time, if reverse { &["-R"] } else { &[] })
}

/// The same at no more than `bits` per second.
pub fn iperf_at(client: &Netns, server: IpAddr, time: Duration, bits: u64) -> Result<f64> {
    iperf_with(client, server, time, &["-b", &bits.to_string()])
}

fn iperf_with(client: &Netns, server: IpAddr, time: Duration, more: &[&str]) -> Result<f64> {
    let mut command = client.command("iperf3");
    command.args(["-c", &server.to_string(), "-t", &time.as_secs().to_string(), "-J"]).args(more);
    let report: Value = serde_json::from_str(&check(&mut command)?).context("iperf3 -J printed no JSON")?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    bits.context("iperf3 reported no rate")
}

/// What `curl` prints for a URL.
pub fn curl(client: &Netns, url: &str) -> Result<String> {
    check(client.command("curl").args(["--silent", "--show-error", "--fail", "--max-time", "10", url]))
}

/// SHA-256 of what is at a URL, in hexadecimal, by curl and sha256sum.
pub fn sha256_of_url(client: &Netns, url: &str) -> Result<String> {
    let script = "set -o pipefail; curl --silent --show-error --fail --max-time 300 \"$0\" | sha256sum";
    let text = check(client.command("bash").args(["-c", script, url]))?;
    first_word(&text)
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_of_file(path: &std::path::Path) -> Result<String> {
    first_word(&check(std::process::Command::new("sha256sum").arg(path))?)
}

/// `http://192.0.2.10:80/` or `http://[2001:db8::10]:80/`; always with the port, for which wrk
/// would want /etc/services.
pub fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

fn first_word(text: &str) -> Result<String> {
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_wrk_prints() {
        let text = "Running 1s test @ http://10.2.0.11:8080/\n  2 threads and 16 connections\n  \
            Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   228.62us  243.71us   6.73ms   93.19%\n  \
            41234 requests in 1.10s, 6.34MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  \
            Non-2xx or 3xx responses: 2\nRequests/sec:  37485.88\n\
            Transfer/sec:      5.76MB\n";
        assert_eq!(parse_wrk(text).unwrap(), Wrk { requests_per_second: 37485.88, requests: 41234, errors: 6 });
    }
}
