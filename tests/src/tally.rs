//! What a load's records come to, and what they prove.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{load::Record, witness::Witness};

/// Sums over connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub connections: u64,
    pub requests: u64,
    /// Connections that failed, for whatever reason.
    pub failures: u64,
    /// Of these, those that had been answered before.
    pub lost: u64,
    /// Connections by the server that answered them.
    pub servers: BTreeMap<String, u64>,
}

impl Tally {
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut tally = Tally::default();
        for record in records {
            tally.connections += 1;
            tally.requests += record.requests;
            tally.failures += u64::from(record.is_failure());
            tally.lost += u64::from(record.is_lost());
            if let Some(server) = &record.server {
                *tally.servers.entry(server.clone()).or_default() += 1;
            }
        }
        tally
    }
}

/// The connections begun in a span of time.
pub fn begun_between(records: &[Record], from: Instant, to: Instant) -> impl Iterator<Item = &Record> {
    records.iter().filter(move |record| from <= record.began && record.began < to)
}

/// Fails if any connection did, and shows some of those.
pub fn expect_no_failure(records: &[Record]) -> Result<()> {
    let failed: Vec<&Record> = records.iter().filter(|record| record.is_failure()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let first = records.iter().map(|record| record.began).min();
    let some: Vec<String> = failed.iter().take(5).map(|record| shown(record, first)).collect();
    bail!("{} of {} connections failed: {}", failed.len(), records.len(), some.join("; "))
}

/// What the failures after the death of a server were.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ejection {
    pub failures: u64,
    pub lost: u64,
    /// Failures whose connection was with another server than the dead one, or of which no server
    /// saw anything.
    pub elsewhere: u64,
    /// From the death to the begin of the last connection that failed.
    pub last_failure: Option<Duration>,
    /// Failures of connections begun later than was promised.
    pub late: u64,
    /// The first that break the promise.
    pub examples: Vec<String>,
}

impl Ejection {
    /// `died_at`: when `server` was killed. A connection's server is the one that answered it, or
    /// else the one that saw its SYN.
    pub fn of(records: &[Record], witness: &Witness, server: &str, died_at: Instant, promised: Duration) -> Self {
        let mut ejection = Ejection::default();
        for record in records.iter().filter(|record| record.is_failure()) {
            ejection.failures += 1;
            ejection.lost += u64::from(record.is_lost());
            let seen = record.server.clone().or_else(|| witness.server_of(record));
            let began = record.began.saturating_duration_since(died_at);
            // A long connection began earlier; what counts is when new ones still met the dead
            // server.
            if record.began >= died_at {
                ejection.last_failure = ejection.last_failure.max(Some(began));
            }
            let late = began > promised;
            let elsewhere = seen.as_deref() != Some(server);
            ejection.late += u64::from(late);
            ejection.elsewhere += u64::from(elsewhere);
            if (late || elsewhere) && ejection.examples.len() < 5 {
                let seen = seen.as_deref().unwrap_or("no server");
                ejection.examples.push(format!("{}, seen by {seen}", shown(record, Some(died_at))));
            }
        }
        ejection
    }

    /// Fails if a promise is broken: every failure is a connection to the dead server, and none was
    /// begun late.
    pub fn expect_promised(&self) -> Result<()> {
        if self.elsewhere == 0 && self.late == 0 {
            return Ok(());
        }
        let Self { failures, elsewhere, late, examples, .. } = self;
        let examples = examples.join("; ");
        bail!(
            "of {failures} failures {elsewhere} were not at the dead server and {late} were begun too late: {examples}"
        )
    }
}

fn shown(record: &Record, since: Option<Instant>) -> String {
    let Record { local, target, outcome, requests, server, .. } = record;
    let at = since.map(|since| record.began.saturating_duration_since(since).as_secs_f32()).unwrap_or_default();
    let server = server.as_deref().unwrap_or("?");
    format!("{local} to {target} begun at {at:.3} s: {outcome:?} after {requests} answers of {server}")
}
