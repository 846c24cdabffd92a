//! Checks the width of comments, which rustfmt does not.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::exec;

/// The maximum width in columns, including indentation.
const WIDTH: usize = 100;

/// Fails and lists every comment line that is too wide, in all source files known to git.
pub fn check() -> Result<()> {
    // Includes files that are not added to git yet.
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*.rs"];
    let listed = Command::new("git").args(list).current_dir(exec::root()).output().context("can't run git")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let mut wide = Vec::new();
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let path = exec::root().join(name);
        // Deleted, but still in git's index.
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        wide.extend(too_wide(&text).map(|line| format!("{name}:{line}")));
    }
    ensure!(wide.is_empty(), "comments wider than {WIDTH} columns:\n  {}", wide.join("\n  "));
    Ok(())
}

/// The line numbers of comments that are too wide.
fn too_wide(text: &str) -> impl Iterator<Item = usize> {
    let is_wide = |line: &str| line.trim_start().starts_with("//") && line.chars().count() > WIDTH;
    text.lines().enumerate().filter(move |(_, line)| is_wide(line)).map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_comments_are_too_wide() {
        let long = "x".repeat(100);
        let text = format!("fn f() {{}}\n    /// {long}\nlet s = \"{long}\";\n// short\n//! {long}\n");
        assert_eq!(too_wide(&text).collect::<Vec<_>>(), [2, 5]);
    }
}
