//! Checks the licences of all dependencies: each must allow distribution as a part of Weir, which
//! is under Apache-2.0 or MIT.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::exec::{host_cargo, shown};

/// Permissive licences: they require no more than that their text is kept.
const ACCEPTED: [&str; 9] =
    ["Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "Unicode-3.0", "Zlib"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// An SPDX expression; `None` if the package has only a licence file.
    license: Option<String>,
}

/// Fails and lists every package of Cargo.lock whose licence is not accepted.
pub fn check() -> Result<()> {
    let mut cargo = host_cargo(["metadata", "--format-version=1", "--locked"]);
    let output = cargo.output().with_context(|| format!("can't start {}", shown(&cargo)))?;
    ensure!(output.status.success(), "{}: {}", shown(&cargo), String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("can't parse the output of cargo metadata")?;
    let mut refused = Vec::new();
    for Package { name, version, license } in metadata.packages {
        let license = license.unwrap_or_default();
        if !is_accepted(&license).with_context(|| format!("the licence of {name} {version}, {license:?}"))? {
            refused.push(format!("{name} {version}: {license:?}"));
        }
    }
    ensure!(
        refused.is_empty(),
        "dependencies with a licence that xtask/src/lint/licences.rs does not accept:\n  {}",
        refused.join("\n  ")
    );
    Ok(())
}

/// Whether the expression can be satisfied by accepted licences alone.
fn is_accepted(license: &str) -> Result<bool> {
    if license.is_empty() {
        return Ok(false);
    }
    // `MIT/Apache-2.0` is how crates used to write OR.
    let mode = ParseMode { allow_slash_as_or_operator: true, ..ParseMode::STRICT };
    let expression = Expression::parse_mode(license, mode)?;
    Ok(expression
        .evaluate(|requirement: &LicenseReq| requirement.license.id().is_some_and(|id| ACCEPTED.contains(&id.name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_enough_and_a_conjunction_needs_all() {
        for (license, accepted) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("MIT OR GPL-2.0-only", true),
            ("GPL-2.0-only", false),
            ("MIT AND GPL-2.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("", false),
        ] {
            assert_eq!(is_accepted(license).unwrap(), accepted, "{license}");
        }
        assert!(is_accepted("mit license").is_err());
    }

    #[test]
    fn every_dependency_is_accepted() {
        check().unwrap();
    }
}
