//! Checks the width of comments, which rustfmt does not check, and of code, which rustfmt does not
//! always break.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{exec, tree};

/// The maximum width of a comment in columns, including indentation.
const WIDTH: usize = 100;
/// The maximum width of code in columns.
const CODE_WIDTH: usize = 120;

/// Fails and lists every line of any Rust file that is too wide.
pub fn check() -> Result<()> {
    let mut wide = Vec::new();
    for file in tree::files()?.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let path = exec::root().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        wide.extend(too_wide(&text).map(|line| format!("{}:{line}", file.display())));
    }
    ensure!(
        wide.is_empty(),
        "comments wider than {WIDTH} columns, or code wider than {CODE_WIDTH}:\n  {}",
        wide.join("\n  ")
    );
    Ok(())
}

/// The numbers of lines that are too wide. A line of code that has no space, at which it could be
/// broken, may have any width.
fn too_wide(text: &str) -> impl Iterator<Item = usize> {
    let is_wide = |line: &str| {
        let (text, width) = (line.trim_start(), line.chars().count());
        if text.starts_with("//") { width > WIDTH } else { width > CODE_WIDTH && text.contains(' ') }
    };
    text.lines().enumerate().filter(move |(_, line)| is_wide(line)).map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_too_wide_before_code_is() {
        let long = "x".repeat(100);
        let text = format!("fn f() {{}}\n    /// {long}\nlet s = \"{long}\";\n// short\n//! {long}\n");
        assert_eq!(too_wide(&text).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(too_wide(&format!("let s = \"{long}{long}\";\n{long}{long}\n")).collect::<Vec<_>>(), [1]);
    }
}
