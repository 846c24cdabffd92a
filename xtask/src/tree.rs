//! The files of the repository, and copies of them for builds in which something is different.
//!
//! Files are found without git: CI may have the sources without their repository.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::exec;

/// Directories that hold no sources, wherever they are.
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
            let kind = entry.file_type().with_context(|| format!("can't look at {}", path.display()))?;
            let holds_none = NO_SOURCES.iter().any(|name| path.ends_with(name)) || path == built;
            if kind.is_dir() && !holds_none {
                directories.push(path);
            } else if kind.is_file() {
                files.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Copies every file, as it is now, into `target/NAME`. Files that have not changed keep their
/// times, so that little is built again.
pub fn copy(name: &str) -> Result<PathBuf> {
    copy_but(name, &BTreeSet::new())
}

/// The same without some files, named from the root, which are the caller's to write.
pub fn copy_but(name: &str, left_out: &BTreeSet<&str>) -> Result<PathBuf> {
    let tree = exec::root().join("target").join(name);
    for file in files()? {
        if file.to_str().is_none_or(|name| !left_out.contains(name)) {
            let from = exec::root().join(&file);
            let bytes = fs::read(&from).with_context(|| format!("can't read {}", from.display()))?;
            write(&tree.join(&file), &bytes)?;
        }
    }
    Ok(tree)
}

/// Writes a file of a copy, unless it has these bytes already.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
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
}
