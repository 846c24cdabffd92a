//! What the demo says in the end: a table for people, a document for programs.

use std::{collections::BTreeMap, fmt};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL};
use serde::Serialize;

use crate::stage::{LONG_CONNECTIONS, Stage};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Every promise was kept.
    pub ok: bool,
    pub seconds: f64,
    pub servers: usize,
    /// How many connections stayed open all the while, for each family.
    pub long_connections: usize,
    pub steps: Vec<Step>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub name: &'static str,
    pub promise: String,
    pub kept: bool,
    pub seconds: f64,
    /// What more was seen, in words.
    pub note: String,
    pub families: Vec<FamilySeen>,
}

/// What was seen in one family while a step ran.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilySeen {
    pub family: &'static str,
    /// Answered requests, on new connections and long ones.
    pub requests: u64,
    pub new_connections: u64,
    pub failures: u64,
    /// Failures of connections that had been answered before.
    pub connections_lost: u64,
    /// From the death of a server to the begin of the last connection that failed at it.
    pub time_to_eject_seconds: Option<f64>,
    /// New connections by server.
    pub servers: BTreeMap<String, u64>,
    /// How the promise was broken.
    pub problems: Vec<String>,
}

impl Report {
    pub fn new(stage: &Stage, steps: Vec<Step>) -> Self {
        Self {
            ok: steps.iter().all(|step| step.kept),
            seconds: stage.began.elapsed().as_secs_f64(),
            servers: stage.bed.servers.len(),
            long_connections: LONG_CONNECTIONS,
            steps,
        }
    }
}

/// Of the table.
const WIDTH: u16 = 120;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_FULL).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        table.set_header(["what happened", "what was promised", "what was seen", ""]);
        for step in &self.steps {
            let verdict = if step.kept { "kept" } else { "BROKEN" };
            let seen: Vec<String> = step.families.iter().map(ToString::to_string).collect();
            let note = if step.note.is_empty() { String::new() } else { format!("\n{}", step.note) };
            table.add_row([step.name, &step.promise, &(seen.join("\n") + &note), verdict]);
        }
        writeln!(f, "{table}")?;
        let (kept, all) = (self.steps.iter().filter(|step| step.kept).count(), self.steps.len());
        let requests: u64 = self.steps.iter().flat_map(|step| &step.families).map(|family| family.requests).sum();
        write!(f, "{kept} of {all} promises kept; {requests} requests in {:.0} s, ", self.seconds)?;
        write!(f, "on new connections and on {} that stayed open all the while", 2 * self.long_connections)
    }
}

impl fmt::Display for FamilySeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<String> = self.servers.iter().map(|(server, count)| format!("{server} {count}")).collect();
        write!(f, "{}: {} requests, ", self.family, self.requests)?;
        write!(f, "{} failed, {} connections lost", self.failures, self.connections_lost)?;
        if let Some(seconds) = self.time_to_eject_seconds {
            write!(f, ", out after {seconds:.2} s")?;
        }
        write!(f, "; new connections: {}", shares.join(", "))?;
        for problem in &self.problems {
            write!(f, "\n  broken: {problem}")?;
        }
        Ok(())
    }
}
