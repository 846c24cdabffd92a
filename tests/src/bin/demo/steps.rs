//! What the demo does, and how each promise is judged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_userspace::state::Health;
use weir_tests::{
    load::Record,
    tally::{Ejection, Tally, begun_between},
};

use crate::{
    report::{FamilySeen, Step},
    stage::{FamilyLoad, HEALTH, Stage},
};

/// Plays all steps, one after the other.
pub fn play(stage: &mut Stage) -> Result<Vec<Step>> {
    Ok(vec![
        spread(stage)?,
        kill_server(stage)?,
        revive_server(stage)?,
        drain(stage)?,
        undrain(stage)?,
        restart_agent(stage)?,
    ])
}

/// A share of new connections may be off by so much.
const SHARE_TOLERANCE: f64 = 0.08;

fn spread(stage: &mut Stage) -> Result<Step> {
    stage.say("steady load over three servers");
    let mut step =
        Watch::begin(stage, "load on three servers", "each server gets a third (± 8 points); no failure".to_owned());
    stage.play_for(Duration::from_secs(6));
    step.end(stage);
    step.expect_no_failure();
    for family in &mut step.families {
        let all: u64 = family.servers.values().sum();
        for server in ["s1", "s2", "s3"] {
            let share = family.servers.get(server).copied().unwrap_or(0) as f64 / all.max(1) as f64;
            if (share - 1.0 / 3.0).abs() > SHARE_TOLERANCE {
                family.problems.push(format!("{server} got {:.0} %", share * 100.0));
            }
        }
    }
    Ok(step.done(""))
}

fn kill_server(stage: &mut Stage) -> Result<Step> {
    let promised = HEALTH.promised_ejection();
    stage.say("s2 is killed (kill -9)");
    let mut step = Watch::begin(
        stage,
        "server s2 is killed",
        format!(
            "only connections to s2 fail, and none that is begun later than {:.1} s ({} probes every {} ms, {} ms \
            time-out, 0.1 s)",
            promised.as_secs_f32(),
            HEALTH.fall,
            HEALTH.interval.as_millis(),
            HEALTH.timeout.as_millis()
        ),
    );
    let died_at = Instant::now();
    stage.web.get_mut(1).context("there are three servers")?.kill()?;
    for backend in stage.backends(2) {
        stage.agent.wait_health(backend, Health::Down, promised * 3)?;
    }
    stage.play_for((promised + Duration::from_secs(2)).saturating_sub(died_at.elapsed()));
    step.end(stage);
    let witness = stage.witness.as_ref().context("the witness watches")?;
    for (family, load) in step.families.iter_mut().zip(&stage.load) {
        let (short, long) = load.records();
        let failed: Vec<Record> = short.into_iter().chain(long).filter(Record::is_failure).collect();
        let ejection = Ejection::of(&failed, witness, "s2", died_at, promised);
        if let Err(broken) = ejection.expect_promised() {
            family.problems.push(broken.to_string());
        }
        family.time_to_eject_seconds = Some(ejection.last_failure.unwrap_or_default().as_secs_f64());
    }
    Ok(step.done("every failure at s2"))
}

fn revive_server(stage: &mut Stage) -> Result<Step> {
    stage.say("s2 comes back");
    let mut step = Watch::begin(stage, "s2 comes back", "s2 gets connections again; no failure".to_owned());
    stage.web.get_mut(1).context("there are three servers")?.restart()?;
    for backend in stage.backends(2) {
        stage.agent.wait_health(backend, Health::Up, Duration::from_secs(20))?;
    }
    let up_at = Instant::now();
    stage.play_for(Duration::from_secs(3));
    step.end(stage);
    step.expect_no_failure();
    step.expect_connections_to(stage, "s2", up_at);
    Ok(step.done("s2 has its share again"))
}

fn drain(stage: &mut Stage) -> Result<Step> {
    stage.say("s3 is drained (weir drain)");
    let promise = "s3 gets no new connection, its old ones go on; no failure".to_owned();
    let mut step = Watch::begin(stage, "s3 is drained", promise);
    for backend in stage.backends(3) {
        stage.agent.cli(&["drain", &format!("web/{backend}")])?;
    }
    let drained_at = Instant::now();
    let before: Vec<u64> = stage.load.iter().map(|load| answers_of_long(load, "s3")).collect();
    stage.play_for(Duration::from_secs(4));
    step.end(stage);
    step.expect_no_failure();
    for ((family, load), before) in step.families.iter_mut().zip(&stage.load).zip(before) {
        let (short, _) = load.records();
        let new = Tally::of(begun_between(&short, drained_at, step.ended)).servers.get("s3").copied().unwrap_or(0);
        if new > 0 {
            family.problems.push(format!("s3 got {new} new connections"));
        }
        let had_long = load.long.records().iter().any(|record| record.server.as_deref() == Some("s3"));
        if had_long && answers_of_long(load, "s3") == before {
            family.problems.push("the old connections of s3 stand still".to_owned());
        }
    }
    Ok(step.done("none to s3 that was begun after the command"))
}

fn undrain(stage: &mut Stage) -> Result<Step> {
    stage.say("s3 is undrained");
    let mut step = Watch::begin(stage, "s3 is undrained", "s3 gets connections again; no failure".to_owned());
    for backend in stage.backends(3) {
        stage.agent.cli(&["undrain", &format!("web/{backend}")])?;
    }
    let undrained_at = Instant::now();
    stage.play_for(Duration::from_secs(3));
    step.end(stage);
    step.expect_no_failure();
    step.expect_connections_to(stage, "s3", undrained_at);
    Ok(step.done("s3 has its share again"))
}

fn restart_agent(stage: &mut Stage) -> Result<Step> {
    stage.say("the agent is killed (kill -9), and started 3 s later");
    let promise = "traffic goes on without the agent; no failure, no connection lost".to_owned();
    let mut step = Watch::begin(stage, "the agent is killed and restarted", promise);
    stage.agent.kill()?;
    stage.play_for(Duration::from_secs(3));
    stage.agent.start_again()?;
    stage.play_for(Duration::from_secs(3));
    step.end(stage);
    step.expect_no_failure();
    Ok(step.done(""))
}

fn answers_of_long(load: &FamilyLoad, server: &str) -> u64 {
    let records = load.long.records();
    records.iter().filter(|record| record.server.as_deref() == Some(server)).map(|record| record.requests).sum()
}

/// A step while it runs.
struct Watch {
    name: &'static str,
    promise: String,
    began: Instant,
    ended: Instant,
    /// Answers so far, for each family.
    answers_before: Vec<u64>,
    families: Vec<FamilySeen>,
}

impl Watch {
    fn begin(stage: &Stage, name: &'static str, promise: String) -> Self {
        let answers_before = stage.load.iter().map(answers).collect();
        let now = Instant::now();
        Self { name, promise, began: now, ended: now, answers_before, families: Vec::new() }
    }

    /// Counts what happened since the beginning.
    fn end(&mut self, stage: &Stage) {
        self.ended = Instant::now();
        let ended_within = |record: &&Record| record.ended.is_some_and(|at| self.began <= at && at < self.ended);
        self.families = stage
            .load
            .iter()
            .zip(&self.answers_before)
            .map(|(load, before)| {
                let (short, long) = load.records();
                let failed = Tally::of(short.iter().chain(&long).filter(ended_within));
                let begun = Tally::of(begun_between(&short, self.began, self.ended));
                FamilySeen {
                    family: load.name(),
                    requests: answers(load) - before,
                    new_connections: begun.connections,
                    failures: failed.failures,
                    connections_lost: failed.lost,
                    time_to_eject_seconds: None,
                    servers: begun.servers,
                    problems: Vec::new(),
                }
            })
            .collect();
    }

    fn expect_no_failure(&mut self) {
        for family in self.families.iter_mut().filter(|family| family.failures > 0) {
            family.problems.push(format!("{} connections failed", family.failures));
        }
    }

    fn expect_connections_to(&mut self, stage: &Stage, server: &str, since: Instant) {
        for (family, load) in self.families.iter_mut().zip(&stage.load) {
            let tally = Tally::of(begun_between(&load.short.records(), since, self.ended));
            if !tally.servers.contains_key(server) {
                family.problems.push(format!("{server} got no connection"));
            }
        }
    }

    fn done(self, note: &str) -> Step {
        let kept = self.families.iter().all(|family| family.problems.is_empty());
        let seconds = (self.ended - self.began).as_secs_f64();
        let note = if kept { note.to_owned() } else { String::new() };
        Step { name: self.name, promise: self.promise, kept, seconds, note, families: self.families }
    }
}

fn answers(load: &FamilyLoad) -> u64 {
    let (short, long) = load.records();
    short.iter().chain(&long).map(|record| record.requests).sum()
}
