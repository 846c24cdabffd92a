//! Checks the width of comments, which rustfmt does not.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{exec, tree};

/// The maximum width in columns, including indentation.
const WIDTH: usize = 100;

/// Fails and lists every comment line that is too wide, in all source files.
pub fn check() -> Result<()> {
    let mut wide = Vec::new();
    for file in tree::files()?.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let path = exec::root().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        wide.extend(too_wide(&text).map(|line| format!("{}:{line}", file.display())));
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
