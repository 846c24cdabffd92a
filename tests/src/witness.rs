//! What reaches the servers, seen by tcpdump and not by Weir: which server got which connection's
//! SYN.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{bed::Bed, load::Record};

/// By family (v4: true) and client port: the servers, in the order in which they saw it.
type Seen = BTreeMap<(bool, u16), Vec<String>>;

/// Watches the SYNs that arrive at each server. The client's ports are in the SNAT pool and don't
/// come twice, so a port tells the connection.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    watchers: Vec<(Child, JoinHandle<()>)>,
}

impl Witness {
    pub fn start(bed: &Bed) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::new()));
        let mut witness = Self { seen: Arc::clone(&seen), watchers: Vec::new() };
        for (number, netns) in (1..).zip(&bed.servers) {
            let name = format!("s{number}");
            let mut child = tcpdump(netns.command("tcpdump"))?;
            let stderr = child.stderr.take().context("tcpdump's stderr is gone")?;
            let stdout = child.stdout.take().context("tcpdump's stdout is gone")?;
            let (listening, heard) = mpsc::channel();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if line.contains("listening on") {
                        // Nobody waits any more when it took too long, which has been reported.
                        listening.send(()).ok();
                    }
                }
            });
            let seen = Arc::clone(&seen);
            let reader = std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Some(key) = connection_of(&line) {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.entry(key).or_default().push(name.clone());
                    }
                }
            });
            witness.watchers.push((child, reader));
            heard.recv_timeout(Duration::from_secs(10)).context("tcpdump does not listen")?;
        }
        Ok(witness)
    }

    /// The server that saw the connection's last SYN.
    pub fn server_of(&self, record: &Record) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(record.local.is_ipv4(), record.local.port()))?.last().cloned()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        for (mut child, reader) in self.watchers.drain(..) {
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("warning: tcpdump does not end: {error}");
            }
            if reader.join().is_err() {
                eprintln!("warning: a witness panicked");
            }
        }
    }
}

fn tcpdump(mut command: Command) -> Result<Child> {
    // Arriving only: what the server itself begins is not of interest. tcp[13] does not work for
    // IPv6.
    let syns = "(tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn) or (ip6[6] == 6 and ip6[53] & 0x12 == 0x02)";
    command.args(["-i", "eth0", "-Q", "in", "-n", "-l", "-q", "--immediate-mode", syns]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("can't start tcpdump")
}

/// Family and client port in a line like `12:00:00.1 IP 10.2.0.1.2048 > 10.2.0.11.8080: tcp 0`;
/// probes' and the client's SYNs alike.
fn connection_of(line: &str) -> Option<(bool, u16)> {
    let mut words = line.split_whitespace().skip(1);
    let v4 = match words.next()? {
        "IP" => true,
        "IP6" => false,
        _ => return None,
    };
    let (_, port) = words.next()?.rsplit_once('.')?;
    Some((v4, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::connection_of;

    #[test]
    fn reads_what_tcpdump_writes() {
        let v4 = "03:10:00.123456 IP 10.2.0.1.2048 > 10.2.0.11.8080: tcp 0";
        let v6 = "03:10:00.123456 IP6 fd02::1.2049 > fd02::11.8080: tcp 0";
        assert_eq!(connection_of(v4), Some((true, 2048)));
        assert_eq!(connection_of(v6), Some((false, 2049)));
        assert_eq!(connection_of("tcpdump: listening on eth0"), None);
    }
}
