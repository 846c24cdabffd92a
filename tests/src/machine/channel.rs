//! The serial port over which a machine is told what to do; its other end is `weir-guest` in
//! xtask/src/guest/files.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{machine::Output, process::wait_for};

pub(super) struct Channel {
    port: UnixStream,
    lines: Receiver<String>,
}

pub(super) enum Message {
    /// It has booted and listens.
    Ready,
    Done {
        number: u32,
        output: Output,
    },
}

impl Channel {
    /// Waits until QEMU has made the socket.
    pub fn open(socket: &Path) -> Result<Self> {
        let mut port = None;
        wait_for("QEMU opens the serial port", Duration::from_secs(10), || {
            port = Some(UnixStream::connect(socket)?);
            Ok(true)
        })?;
        let port = port.context("QEMU has opened no serial port")?;
        let reader = BufReader::new(port.try_clone().context("can't share the serial port")?);
        let (sender, lines) = channel();
        // Ends when QEMU does, which closes the socket.
        std::thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { port, lines })
    }

    pub fn send(&mut self, number: u32, script: &str) -> Result<()> {
        let line = format!("{number} {}\n", base64(script.as_bytes()));
        self.port.write_all(line.as_bytes()).context("can't write to the serial port")
    }

    /// What comes within this time; lines that mean nothing (a boot loader's, half a line before a
    /// reboot) are left out.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Message>> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => message(&line).with_context(|| format!("the serial port says {line:?}")),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience);
                Ok(None)
            }
        }
    }
}

fn message(line: &str) -> Result<Option<Message>> {
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words[..] {
        ["ready", _] => Some(Message::Ready),
        ["done", number, status, stdout, stderr] => {
            let output = Output { status: status.parse()?, stdout: text(stdout)?, stderr: text(stderr)? };
            Some(Message::Done { number: number.parse()?, output })
        }
        _ => None,
    })
}

fn text(word: &str) -> Result<String> {
    if word == "-" {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&unbase64(word)?).into_owned())
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let Some(value) = DIGITS.iter().position(|known| *known == digit) else { bail!("{digit:#x} is not base64") };
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
        assert!(unbase64("Zm!v").is_err());
    }

    #[test]
    fn a_boot_and_an_end_of_a_script_are_told_from_noise() {
        assert!(matches!(message("ready 1b2c").unwrap(), Some(Message::Ready)));
        assert!(message("SeaBIOS (version 1.16)").unwrap().is_none());
        let Some(Message::Done { number: 7, output }) = message("done 7 1 Zm9v -").unwrap() else { panic!() };
        assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (1, "foo", ""));
    }
}
