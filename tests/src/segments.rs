//! TCP segments as tcpdump saw them at an interface, for tests that count single packets.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    bed::Bed,
    netns::Netns,
    process::{Running, wait_for},
};

pub struct Watch {
    running: Running,
    lines: PathBuf,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Segment {
    pub at: SystemTime,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// As tcpdump writes them: `S`, `P.`, `R`, ...
    pub flags: String,
}

impl Segment {
    pub fn is_reset(&self) -> bool {
        self.flags.contains('R')
    }
}

impl Watch {
    /// Of what fits `filter` at `interface` of `netns`, both ways.
    pub fn start(bed: &Bed, netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let lines = bed.dir().join(format!("{}-{interface}.tcpdump", netns.name));
        let mut command = netns.command("tcpdump");
        command.args(["-i", interface, "-n", "-tt", "--immediate-mode", "-B", "65536", filter]);
        let running = Running::start("tcpdump", &lines, &mut command)?;
        wait_for("tcpdump listens", Duration::from_secs(10), || Ok(read(&lines)?.contains("listening on")))?;
        Ok(Self { running, lines })
    }

    /// Every packet so far, in the order of time.
    pub fn stop(mut self) -> Result<Vec<Segment>> {
        self.running.signal(Signal::SIGINT)?;
        wait_for("tcpdump ends", Duration::from_secs(10), || Ok(self.running.ended()?.is_some()))?;
        let text = read(&self.lines)?;
        anyhow::ensure!(
            text.contains("\n0 packets dropped by kernel"),
            "tcpdump has lost packets: {}",
            self.running.log_tail()
        );
        Ok(text.lines().filter_map(packet).collect())
    }
}

fn read(lines: &Path) -> Result<String> {
    std::fs::read_to_string(lines).with_context(|| format!("can't read {}", lines.display()))
}

/// `1763716000.123456 IP 10.1.0.2.2048 > 192.0.2.10.80: Flags [P.], seq 1:5, ...`; `None` for any
/// other line.
fn packet(line: &str) -> Option<Segment> {
    let mut words = line.split_whitespace();
    let at: f64 = words.next()?.parse().ok()?;
    words.next().filter(|family| matches!(*family, "IP" | "IP6"))?;
    let from = end(words.next()?)?;
    words.next().filter(|arrow| *arrow == ">")?;
    let to = end(words.next()?.strip_suffix(':')?)?;
    words.next().filter(|label| *label == "Flags")?;
    let flags = words.next()?.trim_matches(|c| matches!(c, '[' | ']' | ','));
    Some(Segment { at: SystemTime::UNIX_EPOCH + Duration::from_secs_f64(at), from, to, flags: flags.to_owned() })
}

fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once('.')?;
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tcpdump_writes() {
        let v4 =
            packet("1763716000.500000 IP 10.1.0.2.2048 > 192.0.2.10.80: Flags [P.], seq 1:5, ack 9, win 502, length 4")
                .unwrap();
        assert_eq!((v4.from.to_string(), v4.to.to_string()), ("10.1.0.2:2048".to_owned(), "192.0.2.10:80".to_owned()));
        assert_eq!(v4.at.duration_since(SystemTime::UNIX_EPOCH).unwrap(), Duration::from_millis(1_763_716_000_500));
        assert!(!v4.is_reset());
        let v6 = packet("1763716000.5 IP6 2001:db8::10.80 > fd01::2.2049: Flags [R], seq 1, win 0, length 0").unwrap();
        assert_eq!(v6.to.to_string(), "[fd01::2]:2049");
        assert!(v6.is_reset());
        assert_eq!(packet("0 packets dropped by kernel"), None);
    }
}
