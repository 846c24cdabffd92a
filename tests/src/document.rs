//! The commands in a document, so that a test can run them as they stand there.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What is below one heading of a Markdown document, up to the next heading of its level.
pub struct Section {
    title: String,
    text: String,
}

impl Section {
    /// `title`: the heading without its `#`s.
    pub fn read(document: &Path, title: &str) -> Result<Self> {
        let text = std::fs::read_to_string(document).with_context(|| format!("can't read {}", document.display()))?;
        let found =
            section(&text, title).with_context(|| format!("{} has no section `{title}`", document.display()))?;
        Ok(Self { title: title.to_owned(), text: found })
    }

    /// What root is to type, in order: the lines of its ```` ```console ```` blocks that begin with
    /// `# `, each with the lines that it continues on.
    pub fn commands(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let (mut in_block, mut continues) = (false, false);
        for line in self.text.lines().map(str::trim) {
            if line.starts_with("```") {
                in_block = line == "```console";
            } else if in_block && continues {
                if let Some(command) = commands.last_mut() {
                    command.push('\n');
                    command.push_str(line);
                }
                continues = line.ends_with('\\');
            } else if let Some(command) = line.strip_prefix("# ").filter(|_| in_block) {
                commands.push(command.to_owned());
                continues = command.ends_with('\\');
            }
        }
        commands
    }

    /// The command itself, if the section names it between backticks.
    pub fn names<'a>(&self, command: &'a str) -> Result<&'a str> {
        ensure!(
            self.text.contains(&format!("`{command}`")),
            "the section `{}` no longer says `{command}`: the test must follow the document",
            self.title
        );
        Ok(command)
    }
}

fn section(text: &str, title: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| line.trim_start_matches('#').trim() != title || !is_heading(line));
    let level = lines.next()?.split(' ').next()?.len();
    // A comment in a block of code begins with a `#` as well.
    let mut in_block = false;
    let ends = move |line: &&str| {
        in_block ^= line.trim().starts_with("```");
        in_block || !is_heading(line) || line.split(' ').next().is_some_and(|marks| marks.len() > level)
    };
    Some(lines.take_while(ends).map(|line| format!("{line}\n")).collect())
}

fn is_heading(line: &str) -> bool {
    let marks = line.len() - line.trim_start_matches('#').len();
    marks > 0 && line[marks..].starts_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n## Install\n1. First:\n\n   ```console\n   # one --flag \\\n       two\n   \
        output\n   # three\n   ```\n\
                        ### Deeper\n```console\n# four\n```\n```yaml\n# no command\n```\n\
        Say `go on`.\n## Remove\n```console\n# five\n```\n";

    fn read(title: &str) -> Section {
        Section { title: title.to_owned(), text: section(TEXT, title).unwrap() }
    }

    #[test]
    fn commands_are_those_of_console_blocks_of_the_section() {
        assert_eq!(read("Install").commands(), ["one --flag \\\ntwo", "three", "four"]);
        assert_eq!(read("Remove").commands(), ["five"]);
        assert!(section(TEXT, "Upgrade").is_none());
    }

    #[test]
    fn a_command_that_the_section_does_not_name_is_an_error() {
        assert_eq!(read("Install").names("go on").unwrap(), "go on");
        assert!(read("Remove").names("go on").is_err());
    }
}
