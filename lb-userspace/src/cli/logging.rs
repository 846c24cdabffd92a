//! The agent's log: one line for each event, on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// How a line of the log looks
    #[arg(long, value_enum, env = "WEIR_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or more finely as in `info,lb_userspace::health=debug`
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
        let lines = match self.log_format {
            LogFormat::Logfmt => tracing_logfmt::builder().layer().with_writer(std::io::stderr).boxed(),
            LogFormat::Json => {
                tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
            }
        };
        tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
        Ok(())
    }
}
