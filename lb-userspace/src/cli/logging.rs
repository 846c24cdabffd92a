//! The agent's log: one line for each event, on standard error.

use std::{io, os::fd::AsFd};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// The format of log lines; under journald, which adds its own timestamps, they have none
    #[arg(long, value_enum, env = "WEIR_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
    /// The least severe level that is logged: error, warn, info, debug or trace; or a filter such
    /// as `info,lb_userspace::health=debug`
    #[arg(long, env = "WEIR_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogFormat {
    #[default]
    Logfmt,
    Json,
}

impl Logging {
    /// Starts the log of this process.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::builder()
            .parse(&self.log_level)
            .map_err(|error| anyhow::anyhow!("--log-level {:?} is not understood: {error}", self.log_level))?;
        // journald puts its own timestamp before each line.
        let has_timestamp = !writes_to_journald(io::stderr());
        let lines = match self.log_format {
            LogFormat::Logfmt => {
                tracing_logfmt::builder().with_timestamp(has_timestamp).layer().with_writer(io::stderr).boxed()
            }
            LogFormat::Json => {
                let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr);
                if has_timestamp { json.boxed() } else { json.without_time().boxed() }
            }
        };
        tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
        Ok(())
    }
}

/// Whether `JOURNAL_STREAM` names the file behind `output`. A process below a unit inherits the
/// variable, but its output may be redirected.
fn writes_to_journald(output: impl AsFd) -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    nix::sys::stat::fstat(output).is_ok_and(|file| names(&journal, file.st_dev, file.st_ino))
}

/// Whether `journal_stream` is `DEVICE:INODE` in decimal (systemd.exec(5)) of this file.
fn names(journal_stream: &str, device: u64, inode: u64) -> bool {
    journal_stream
        .split_once(':')
        .is_some_and(|(of_device, of_inode)| of_device.parse() == Ok(device) && of_inode.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_stream_names_a_file_by_its_device_and_inode() {
        for (text, is_named) in [
            ("8:15", true),
            ("8:16", false),
            ("9:15", false),
            ("15:8", false),
            ("8", false),
            ("8:15:1", false),
            ("", false),
            (":", false),
        ] {
            assert_eq!(names(text, 8, 15), is_named, "{text:?}");
        }
    }
}
