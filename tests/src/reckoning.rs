//! What became of a crowd, held against the truth about its backends.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    bed::{Bed, VIPS},
    churn::Truth,
    crowd::{Kind, Story},
    load::Outcome,
};

/// What the connections of one kind came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub connections: usize,
    pub answers: u64,
    /// Lost because their backend's drain ran out, or it was killed.
    pub with_backend: usize,
    /// Lost as the documented limit allows.
    pub excused: usize,
    /// Lost although their backend lived, or never had an answer.
    pub broken: usize,
    pub longest_wait: Duration,
}

pub struct Reckoning {
    pub counts: BTreeMap<Kind, Count>,
    /// One line for each connection that should not have been lost, in the order of time.
    pub broken: Vec<String>,
}

impl Reckoning {
    /// `excuse` says whether a connection of this backend may be lost although the backend lived;
    /// if not, the error says why not.
    pub fn of(
        stories: &[Story],
        bed: &Bed,
        truth: &Truth,
        excuse: impl Fn(&Story, SocketAddr) -> Result<(), String>,
    ) -> Self {
        let mut reckoning = Self { counts: BTreeMap::new(), broken: Vec::new() };
        let mut by_end: Vec<(Instant, &Story)> =
            stories.iter().map(|story| (story.record.ended.unwrap_or_else(Instant::now), story)).collect();
        by_end.sort_by_key(|(ended, _)| *ended);
        for (ended, story) in by_end {
            let count = reckoning.counts.entry(story.kind).or_default();
            count.connections += 1;
            count.answers += story.record.requests;
            count.longest_wait = count.longest_wait.max(story.longest_wait);
            if !story.record.is_failure() {
                continue;
            }
            let backend = backend_of(story, bed);
            // A wrong answer is never right, whoever has died.
            let is_wrong = matches!(story.record.outcome, Outcome::Other(_));
            let lived = match backend.filter(|_| !is_wrong) {
                None => String::new(),
                Some(backend) if truth.died(backend, story.record.began, ended) => {
                    count.with_backend += 1;
                    continue;
                }
                Some(backend) => match excuse(story, backend) {
                    Ok(()) => {
                        count.excused += 1;
                        continue;
                    }
                    Err(why) => format!("; {why}"),
                },
            };
            count.broken += 1;
            reckoning.broken.push(told(story, backend, ended, truth) + &lived);
        }
        reckoning
    }

    /// Fails if a connection was lost that should not have been, and shows the first of them.
    pub fn expect_kept(&self) -> Result<()> {
        if self.broken.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = self.broken.iter().take(30).map(String::as_str).collect();
        let more = self.broken.len() - shown.len();
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        bail!(
            "{} connections were lost that should not have been:\n  {}{more}\n{self}",
            self.broken.len(),
            shown.join("\n  ")
        )
    }

    pub fn count(&self, kind: Kind) -> Count {
        self.counts.get(&kind).cloned().unwrap_or_default()
    }
}

impl fmt::Display for Reckoning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.counts {
            let Count { connections, answers, with_backend, excused, broken, longest_wait } = count;
            writeln!(
                f,
                "  {:<6} {connections:>6} connections, {answers:>7} answers (the slowest after {} ms); lost: \
                {with_backend} with their \
                 backend, {excused} within the limit, {broken} wrongly",
                kind.name(),
                longest_wait.as_millis()
            )?;
        }
        Ok(())
    }
}

/// The backend that a connection was with; `None` if it never had an answer.
fn backend_of(story: &Story, bed: &Bed) -> Option<SocketAddr> {
    let number: u16 = story.record.server.as_deref()?.strip_prefix('s')?.parse().ok()?;
    let vip = if story.record.target.is_ipv4() { VIPS[0] } else { VIPS[1] };
    Some(bed.backend(number, vip))
}

fn told(story: &Story, backend: Option<SocketAddr>, ended: Instant, truth: &Truth) -> String {
    let record = &story.record;
    let (kind, target, outcome, answers) = (story.kind.name(), record.target, &record.outcome, record.requests);
    let family = if target.is_ipv4() { "v4" } else { "v6" };
    let (began, ended_at) = (truth.seconds(record.began), truth.seconds(ended));
    let whose = match backend {
        None => "it had no answer".to_owned(),
        Some(backend) => {
            let server = record.server.as_deref().unwrap_or_default();
            format!("{server} = {backend} lived: {}", truth.done_to(backend, ended))
        }
    };
    let port = record.local.port();
    format!(
        "{ended_at:.3} s: {kind} {family} port {port}, begun at {began:.3} s, {outcome:?} after {answers} answers; \
        {whose}"
    )
}
