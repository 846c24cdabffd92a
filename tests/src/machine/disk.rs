//! The disk on which a machine finds what the host has built: a directory that looks like the
//! clone.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    agent::{other_binary, weir_binary},
    machine::{copy, repository},
    process::check,
};

/// Where a machine has the other layout's binary, the packet suite and its object, below its clone.
pub const OTHER: &str = "target/release/weir-other-layout";
pub const PACKET_SUITE: &str = "target/packet";
pub const OBJECT: &str = "target/ebpf/weir.bpf.o";

/// Makes the disk in `dir`, with these files beside what is built; its path.
pub fn make(dir: &Path, files: &[(&str, &str)]) -> Result<PathBuf> {
    let clone = dir.join("clone");
    let packet_suite =
        std::env::var_os("WEIR_PACKET_SUITE").context("WEIR_PACKET_SUITE is not set: `cargo xtask test guest` does")?;
    copy(&weir_binary()?, &clone.join("target/release/weir"))?;
    copy(&other_binary()?, &clone.join(OTHER))?;
    copy(Path::new(&packet_suite), &clone.join(PACKET_SUITE))?;
    copy(&repository(OBJECT), &clone.join(OBJECT))?;
    check(Command::new("cp").arg("-a").arg(repository("deploy")).arg(&clone))?;
    for (name, text) in files {
        let path = clone.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    let image = dir.join("clone.ext4");
    let megabytes = size(&clone)? / 1_000_000 * 9 / 8 + 32;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]).arg(&clone).arg(&image);
    check(mke2fs.arg(format!("{megabytes}M")))?;
    fs::remove_dir_all(&clone).with_context(|| format!("can't remove {}", clone.display()))?;
    Ok(image)
}

/// What the files below a directory take.
fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("can't read {}", dir.display()))?;
        let metadata = entry.metadata().with_context(|| format!("can't look at {}", entry.path().display()))?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.size() };
    }
    Ok(sum)
}
