//! Lists the files of the repository, and copies them with edits, to build variants of Weir.
//!
//! Files are found without git, because CI may have the sources without the `.git` directory.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::exec;

/// Names of directories that hold no sources, at any depth.
const NO_SOURCES: [&str; 2] = ["target", ".git"];

/// Every file of the repository, relative to its root, in order.
pub fn files() -> Result<Vec<PathBuf>> {
    let root = exec::root();
    let built = exec::target();
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("can't read {}", directory.display()))? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type().with_context(|| format!("can't read the file type of {}", path.display()))?;
            let is_skipped = NO_SOURCES.iter().any(|name| path.ends_with(name)) || path == built;
            if kind.is_dir() && !is_skipped {
                directories.push(path);
            } else if kind.is_file() {
                files.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// One change to a copy: `from`, which the file must contain exactly once, becomes `to`.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// Relative to the root of the repository.
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

impl Edit {
    pub fn apply(&self, text: &str) -> Result<String> {
        let Self { file, from, to } = self;
        let found = text.matches(from).count();
        ensure!(found == 1, "{file} has changed: it contains this text {found} times instead of once: {from:?}");
        Ok(text.replace(from, to))
    }
}

/// Copies every file of the repository, with these edits, into `target/NAME`. Files that have not
/// changed since the last copy keep their modification times, so that cargo rebuilds little.
pub fn copy(name: &str, edits: &[Edit]) -> Result<PathBuf> {
    let tree = exec::root().join("target").join(name);
    let files = files()?;
    for Edit { file, .. } in edits {
        ensure!(files.iter().any(|known| known == Path::new(file)), "there is no file {file} to edit");
    }
    for file in files {
        let from = exec::root().join(&file);
        let mut bytes = fs::read(&from).with_context(|| format!("can't read {}", from.display()))?;
        for edit in edits.iter().filter(|edit| file == Path::new(edit.file)) {
            let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", from.display()))?;
            bytes = edit.apply(&text)?.into_bytes();
        }
        write(&tree.join(&file), &bytes)?;
    }
    Ok(tree)
}

/// Writes the file, unless it already contains these bytes.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// Cargo for the host crates of a copy, with the copy's own target directory. Cargo names build
/// outputs by paths relative to the workspace, so in a shared target directory it would confuse the
/// crates of one tree with those of another.
pub fn host_cargo(tree: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut cargo = exec::host_cargo(arguments);
    cargo.current_dir(tree).env("CARGO_TARGET_DIR", tree.join("target"));
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_and_nothing_that_was_built() {
        let files = files().unwrap();
        for name in ["Cargo.toml", ".cargo/config.toml", "xtask/src/tree.rs", "lb-common/src/lib.rs"] {
            assert!(files.contains(&PathBuf::from(name)), "{name}");
        }
        assert!(!files.iter().any(|file| file.starts_with("target") || file.starts_with(".git/")));
    }

    #[test]
    fn edit_of_a_text_that_has_changed_is_refused() {
        let edit = Edit { file: "a.rs", from: "one", to: "two" };
        assert_eq!(edit.apply("zero one").unwrap(), "zero two");
        for text in ["zero", "one one"] {
            assert!(edit.apply(text).unwrap_err().to_string().contains("a.rs has changed"), "{text}");
        }
    }
}
