//! Removes the rules of the ring from a copy of the sources, one at a time, and checks that the
//! model's suite fails without the rule. Not for CI, because it rebuilds everything for each rule.

mod rules;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::rules::{RULES, Rule};
use crate::{
    ebpf,
    exec::{self, host_cargo, say},
    setup,
    suites::build,
    toolchain::TARGET,
    tree,
};

#[derive(Args)]
pub struct Arguments {
    /// Only rules whose name contains one of these texts; all rules if there is none.
    names: Vec<String>,
    /// The maximum number of random sequences per address family.
    #[arg(long, default_value_t = 3000)]
    cases: u32,
}

pub fn run_all(arguments: &Arguments) -> Result<()> {
    let is_chosen = |rule: &&Rule| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| rule.name.contains(name.as_str()))
    };
    let chosen: Vec<&Rule> = RULES.iter().filter(is_chosen).collect();
    if !exec::is_root() {
        bail!("needs root: the model's suite loads BPF programs");
    }
    let object = ebpf::build()?;
    let suite = usual_suite()?;
    let mut survivors = Vec::new();
    for rule in chosen {
        let begun = Instant::now();
        let tree = tree::copy("mutants", &[rule.edit])?;
        let noticed = match rule.edit.file.starts_with("lb-ebpf/") {
            true => is_noticed(&suite, &build_object(&tree)?, arguments.cases),
            false => is_noticed(&mutated_suite(&tree, &object)?, &object, arguments.cases),
        };
        let verdict = match noticed? {
            Some(what) => what,
            None => {
                survivors.push(rule.name);
                "NOT NOTICED".to_owned()
            }
        };
        println!("| {} | `{}` | {verdict} |", rule.name, rule.edit.file);
        say("mutant", format_args!("{} ({:.0} s)", rule.name, begun.elapsed().as_secs_f32()));
    }
    if !survivors.is_empty() {
        bail!("the suite does not notice that these rules are left out: {}", survivors.join("; "));
    }
    Ok(())
}

const SUITE: [&str; 5] = ["test", "-p", "weir-tests", "--test", "model"];

/// The model's suite, built from the unchanged sources.
fn usual_suite() -> Result<PathBuf> {
    suite_of(&mut host_cargo(SUITE))
}

/// The model's suite, built from a copy of the sources, with `object` embedded.
fn mutated_suite(tree: &Path, object: &Path) -> Result<PathBuf> {
    // The build script of lb-userspace looks for the object in this directory.
    let objects = tree.join("target/ebpf");
    std::fs::create_dir_all(&objects)?;
    std::fs::copy(object, objects.join("weir.bpf.o"))?;
    suite_of(&mut tree::host_cargo(tree, SUITE))
}

fn suite_of(cargo: &mut Command) -> Result<PathBuf> {
    let mut programs = build::programs(cargo.arg("--no-run"))?.into_iter();
    let suite = programs.find(|program| program.is_integration && program.target == "model");
    Ok(suite.context("cargo lists no model suite")?.path)
}

fn build_object(tree: &Path) -> Result<PathBuf> {
    let directory = exec::root().join("target/mutants-ebpf");
    let mut cargo = setup::toolchain()?.cargo_into("build", &directory)?;
    output(cargo.args(["--bin", "weir-ebpf"]).current_dir(tree))?;
    Ok(directory.join(TARGET).join("release/weir-ebpf"))
}

/// Runs the suite; returns the violation that it reports, or `None` if it passes.
fn is_noticed(suite: &Path, object: &Path, cases: u32) -> Result<Option<String>> {
    let mut command = Command::new(suite);
    command.args(["promise", "--test-threads=1", "--nocapture"]).env("WEIR_BPF_OBJECT", object);
    command.env("WEIR_MODEL_CASES", cases.to_string()).env("WEIR_MODEL_SHRINKS", "0").env("RUST_BACKTRACE", "0");
    let run = command.stdin(Stdio::null()).output().with_context(|| format!("can't run {}", suite.display()))?;
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.success() {
        return Ok(None);
    }
    // Only a violation that the suite reports counts; other failures are errors.
    let violation =
        text.lines().find(|line| line.starts_with("flow ")).map(|line| line.split(';').next().unwrap_or(line));
    match violation {
        Some(violation) => Ok(Some(violation.to_owned())),
        None => bail!("the suite failed without reporting a violation:\n{text}"),
    }
}

fn output(command: &mut Command) -> Result<String> {
    let run = command.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", exec::shown(command)))?;
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    if !run.status.success() {
        bail!("{} failed:\n{text}", exec::shown(command));
    }
    Ok(text)
}
