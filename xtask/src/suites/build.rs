//! Builds all test programs with one cargo command. Cargo selects the features of dependencies for
//! all packages of a command together, so with one command per suite, lb-userspace would be rebuilt
//! for each suite.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::exec::{host_cargo, say, shown};

/// One test program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binary {
    /// The package's directory, in which cargo would run the program.
    pub dir: PathBuf,
    /// The name of the library, binary or integration test.
    pub target: String,
    /// Whether it is an integration test: one under `tests/` of its package.
    pub is_integration: bool,
    pub path: PathBuf,
}

impl Binary {
    /// The last component of the package's directory.
    pub fn package(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// Builds every test program in the workspace, and `weir` itself.
pub fn tests() -> Result<Vec<Binary>> {
    let began = Instant::now();
    let binaries = programs(&mut host_cargo(["test", "--workspace", "--no-run"]))?;
    let (count, took) = (binaries.len(), began.elapsed().as_secs_f32());
    say("build", format_args!("{count} test programs in {took:.0} s"));
    Ok(binaries)
}

/// The test programs that a `cargo test --no-run` builds.
pub fn programs(cargo: &mut Command) -> Result<Vec<Binary>> {
    let binaries = binaries(&output(cargo.arg("--message-format=json-render-diagnostics"))?)?;
    if binaries.is_empty() {
        bail!("{} lists no test program", shown(cargo));
    }
    Ok(binaries)
}

/// Runs the command and returns its stdout. Its stderr, with cargo's progress, goes to the
/// terminal.
fn output(command: &mut Command) -> Result<String> {
    let command = command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("can't start {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shown(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {} is not UTF-8", shown(command)))
}

/// A line of `--message-format=json`, with only the fields that are used here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    /// Whether the artifact is a test program. For an integration test, cargo also builds the
    /// package's ordinary binaries.
    test: bool,
}

/// The test programs named in cargo's messages, ordered by package and name.
fn binaries(messages: &str) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("can't parse cargo's message {line}"))?;
        let Message { manifest_path: Some(manifest), target: Some(target), profile: Some(profile), .. } = message
        else {
            continue;
        };
        let (Some(path), Some(dir)) = (message.executable, manifest.parent()) else { continue };
        if message.reason == "compiler-artifact" && profile.test {
            let is_integration = target.kind.iter().any(|kind| kind == "test");
            binaries.push(Binary { dir: dir.to_owned(), target: target.name, is_integration, path });
        }
    }
    binaries.sort_by(|one, other| (&one.dir, &one.target).cmp(&(&other.dir, &other.target)));
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_of_tests_are_taken_from_cargos_messages() {
        let artifact = |name: &str, kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{{"name":"{name}","kind":["{kind}"],"test":true}},"profile":{{"test":{test},"opt_level":"0"}},"executable":"/w/target/debug/{name}","fresh":true}}"#
            )
        };
        let messages = [
            artifact("packet", "test", true),
            artifact("bench", "bin", false),
            artifact("bench", "bin", true),
            r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"weir_tests","kind":["lib"]},"profile":{"test":false},"executable":null}"#.to_owned(),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let found = binaries(&messages.join("\n")).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.package(), one.target.as_str(), one.is_integration)).collect();
        assert_eq!(found, [("tests", "bench", false), ("tests", "packet", true)]);
    }
}
