//! A copy of the sources, for builds of which something is different.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::exec;

/// Copies every file that git tracks, as it is now, into `target/NAME`. Files that have not changed
/// keep their times, so that little is built again.
pub fn copy(name: &str) -> Result<PathBuf> {
    copy_but(name, &BTreeSet::new())
}

/// The same without some files, named from the root, which are the caller's to write.
pub fn copy_but(name: &str, left_out: &BTreeSet<&str>) -> Result<PathBuf> {
    let tree = exec::root().join("target").join(name);
    let listed =
        Command::new("git").args(["ls-files", "-z"]).current_dir(exec::root()).output().context("can't run git")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    for name in
        String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty() && !left_out.contains(name))
    {
        let (from, to) = (exec::root().join(name), tree.join(name));
        if from.is_file() {
            let bytes = std::fs::read(&from).with_context(|| format!("can't read {}", from.display()))?;
            write(&to, &bytes)?;
        }
    }
    Ok(tree)
}

/// Writes a file of a copy, unless it has these bytes already.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).ok().as_deref() != Some(bytes) {
        std::fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        std::fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}
