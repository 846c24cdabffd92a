//! Which backends lived, for connections that they had: until a drain ends, whoever ordered it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

pub struct Truth {
    began: Instant,
    drain_timeout: Duration,
    /// When a drain that goes on ends.
    ends: BTreeMap<SocketAddr, Instant>,
    /// Spans of time in which a backend may have had no connection any more.
    deaths: BTreeMap<SocketAddr, Vec<(Instant, Option<Instant>)>>,
    changes: Vec<(Instant, SocketAddr, String)>,
}

impl Truth {
    pub fn new(drain_timeout: Duration) -> Self {
        Self {
            began: Instant::now(),
            drain_timeout,
            ends: BTreeMap::new(),
            deaths: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, at: Instant, backend: SocketAddr, change: impl ToString) {
        self.changes.push((at, backend, change.to_string()));
    }

    /// From before the order was given, so that the drain surely does not end earlier than is
    /// thought here.
    pub(super) fn drains(&mut self, backend: SocketAddr, since: Instant) {
        self.ends.entry(backend).or_insert(since + self.drain_timeout);
    }

    /// From when the order was carried out.
    pub(super) fn serves(&mut self, backend: SocketAddr, since: Instant) {
        if let Some(ends) = self.ends.remove(&backend)
            && ends <= since
        {
            self.deaths.entry(backend).or_default().push((ends, Some(since)));
        }
    }

    /// Its server was ended.
    pub fn dies(&mut self, backend: SocketAddr, at: Instant) {
        self.changes.push((at, backend, "killed".to_owned()));
        self.deaths.entry(backend).or_default().push((at, None));
    }

    /// Whether a connection that began then may have lost its backend by then.
    pub fn died(&self, backend: SocketAddr, began: Instant, until: Instant) -> bool {
        let deaths = self.deaths.get(&backend).into_iter().flatten();
        let mut over = deaths.copied().chain(self.ends.get(&backend).map(|ends| (*ends, None)));
        over.any(|(died, again)| died <= until && again.is_none_or(|again| began <= again))
    }

    pub fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Seconds since the beginning.
    pub fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64()
    }

    /// What was done to a backend shortly before.
    pub fn done_to(&self, backend: SocketAddr, until: Instant) -> String {
        let own = self.changes.iter().filter(|(at, whose, _)| *whose == backend && *at <= until);
        let lines: Vec<String> = own.map(|(at, _, change)| format!("{change} at {:.3} s", self.seconds(*at))).collect();
        let last = lines.len().saturating_sub(4);
        if lines.is_empty() { "never changed".to_owned() } else { lines[last..].join(", ") }
    }

    /// What was done last to any backend.
    pub fn last_change(&self, until: Instant) -> String {
        let last = self.changes.iter().rev().find(|(at, ..)| *at <= until);
        last.map_or_else(
            || "none".to_owned(),
            |(at, backend, change)| format!("{:.0} ms before, {backend} {change}", (until - *at).as_secs_f64() * 1e3),
        )
    }

    /// How often each kind of change was made, for people.
    pub fn summary(&self) -> String {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, _, change) in &self.changes {
            let kind = if change.starts_with("weight") { "weight" } else { change };
            *kinds.entry(kind).or_default() += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        let ended = self.deaths.values().map(Vec::len).sum::<usize>();
        format!(
            "{} changes: {}; {ended} drains ran out before they were taken back",
            self.changes.len(),
            kinds.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_lives_until_its_drain_has_run_out_and_again_once_it_serves() {
        let backend: SocketAddr = "10.2.0.11:80".parse().unwrap();
        let mut truth = Truth::new(Duration::from_secs(10));
        let at = |seconds| truth_start() + Duration::from_secs(seconds);
        truth.drains(backend, at(100));
        truth.drains(backend, at(105));
        assert!(!truth.died(backend, at(50), at(109)));
        assert!(truth.died(backend, at(50), at(110)));
        truth.serves(backend, at(109));
        assert!(!truth.died(backend, at(50), at(200)), "taken back in time");
        truth.drains(backend, at(200));
        truth.serves(backend, at(215));
        assert!(truth.died(backend, at(50), at(300)), "it was over for a while");
        assert!(!truth.died(backend, at(216), at(300)), "begun later");
    }

    fn truth_start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }
}
