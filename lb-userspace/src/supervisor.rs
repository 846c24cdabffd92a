//! Notifications to systemd if it started this process (`NOTIFY_SOCKET`); otherwise nothing is
//! sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// A one-line status of the service, for `systemctl status`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub text: String,
    /// Whether the current configuration file is refused.
    pub is_refused: bool,
}

/// Maximum length of the text; the rest is cut off. `systemctl status` shows the text in one line.
const MAX_TEXT: usize = 400;

impl Report {
    pub fn new(text: &str, is_refused: bool) -> Self {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = match line.char_indices().nth(MAX_TEXT) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        };
        Self { text, is_refused }
    }

    fn states(&self) -> [NotifyState<'_>; 2] {
        // systemd keeps the errno until it receives another one.
        let errno = if self.is_refused { libc::EINVAL.unsigned_abs() } else { 0 };
        [NotifyState::Status(&self.text), NotifyState::Errno(errno)]
    }
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the supervisor (NOTIFY_SOCKET)");
    }
}

pub fn status(report: &Report) {
    tell(&report.states());
}

/// Reports that the start or a reload is complete.
pub fn ready(report: &Report) {
    let [status, errno] = report.states();
    tell(&[NotifyState::Ready, status, errno]);
}

/// Reports the current step of a start that may take long.
pub fn starting(what: &str) {
    tell(&[NotifyState::Status(&Report::new(&format!("starting: {what}"), false).text)]);
}

/// Makes systemd wait for the start for this long from now, even beyond its own timeout.
pub fn extend_start(by: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))]);
}

pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot notify the supervisor of the reload: the clock cannot be read"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; the data path goes on")]);
}

pub fn failed(error: &anyhow::Error) {
    tell(&[NotifyState::Status(&Report::new(&format!("failed: {error:#}"), false).text)]);
}

pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Half of the supervisor's watchdog interval; `None` if the supervisor has no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_one_line_of_bounded_length() {
        assert_eq!(Report::new("refused:\n  line 1\n  line 2", true).text, "refused: line 1 line 2");
        let long = Report::new(&"ä".repeat(MAX_TEXT + 1), false).text;
        assert_eq!(long, format!("{}…", "ä".repeat(MAX_TEXT)));
        assert_eq!(Report::new(&"ä".repeat(MAX_TEXT), false).text, "ä".repeat(MAX_TEXT));
    }
}
