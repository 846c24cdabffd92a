//! What systemd is told, if it started us (`NOTIFY_SOCKET`); otherwise nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// One line on how the service is, for `systemctl status`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub text: String,
    /// The configuration file, as it is now, is refused.
    pub is_refused: bool,
}

/// The longest text: what follows is cut off. `systemctl status` shows it in one line.
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
        // systemd keeps the number until it is told another one.
        let errno = if self.is_refused { libc::EINVAL.unsigned_abs() } else { 0 };
        [NotifyState::Status(&self.text), NotifyState::Errno(errno)]
    }
}

/// Whether anybody is told.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "cannot tell the supervisor (NOTIFY_SOCKET)");
    }
}

pub fn status(report: &Report) {
    tell(&report.states());
}

/// The start or a reload is over.
pub fn ready(report: &Report) {
    let [status, errno] = report.states();
    tell(&[NotifyState::Ready, status, errno]);
}

/// What a start that may take long is at.
pub fn starting(what: &str) {
    tell(&[NotifyState::Status(&Report::new(&format!("starting: {what}"), false).text)]);
}

/// The start goes on: systemd waits for it so long from now on, beyond its own timeout.
pub fn extend_start(by: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))]);
}

pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the supervisor (NOTIFY_SOCKET) of the reload"),
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

/// How often the supervisor wants a sign of life, halved; `None` if it doesn't.
pub fn watchdog_interval() -> Option<Duration> {
    let mut usec = 0;
    sd_notify::watchdog_enabled(false, &mut usec).then(|| Duration::from_micros(usec / 2))
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
