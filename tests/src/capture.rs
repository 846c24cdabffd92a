//! What goes over a cable, frame by frame, as tcpdump sees it.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Netns;

/// Runs until it is stopped.
pub struct Capture {
    tcpdump: Child,
    reader: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
}

impl Capture {
    /// The frames that arrive at `interface` and match `filter`, the first 200 bytes of each; it
    /// listens when this returns.
    pub fn start(netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let mut command = netns.command("tcpdump");
        command.args(["-i", interface, "-Q", "in", "-n", "-s", "200", "--immediate-mode", "-U", "-w", "-", filter]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tcpdump = command.spawn().context("can't start tcpdump")?;
        let mut stdout = tcpdump.stdout.take().context("tcpdump's stdout is gone")?;
        let stderr = tcpdump.stderr.take().context("tcpdump's stderr is gone")?;
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let capture = Self { tcpdump, reader: Some(reader) };
        let (listening, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("listening on") {
                    // Nobody waits any more when it took too long, which has been reported.
                    listening.send(()).ok();
                }
            }
        });
        heard.recv_timeout(Duration::from_secs(10)).context("tcpdump does not listen")?;
        Ok(capture)
    }

    /// Ends it; the frames, from their Ethernet header on.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        kill(Pid::from_raw(self.tcpdump.id().cast_signed()), Signal::SIGTERM).context("can't end tcpdump")?;
        self.tcpdump.wait().context("can't wait for tcpdump")?;
        match self.reader.take().map(JoinHandle::join) {
            Some(Ok(bytes)) => frames(&bytes.context("can't read what tcpdump wrote")?),
            _ => bail!("the capture's reader panicked"),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.reader.is_some()
            && let Err(error) = self.tcpdump.kill().and_then(|()| self.tcpdump.wait().map(drop))
        {
            eprintln!("warning: tcpdump does not end: {error}");
        }
    }
}

/// The packets of a pcap file that was written on this machine.
fn frames(pcap: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (header, mut rest) = pcap.split_at_checked(24).context("tcpdump wrote nothing")?;
    if header.get(..4) != Some(&0xa1b2_c3d4_u32.to_ne_bytes()) {
        bail!("tcpdump wrote {header:02x?}, which is no pcap header");
    }
    let mut frames = Vec::new();
    // Time, time, length here, length on the wire. tcpdump may have been ended in the middle of a
    // packet.
    while let Some((record, after)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes([record[8], record[9], record[10], record[11]]) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        rest = after;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_packets_of_a_pcap_file_and_leaves_a_torn_one() {
        let mut pcap = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
        pcap.resize(24, 0);
        for (frame, stored) in [(&b"abc"[..], 3_u32), (b"", 0), (b"torn", 5)] {
            pcap.extend([0; 8]);
            pcap.extend(stored.to_ne_bytes());
            pcap.extend(1500_u32.to_ne_bytes());
            pcap.extend(frame);
        }
        assert_eq!(frames(&pcap).unwrap(), [b"abc".to_vec(), Vec::new()]);
        assert!(frames(&[0; 24]).is_err() && frames(&[]).is_err());
    }
}
