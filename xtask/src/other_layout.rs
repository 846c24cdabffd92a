//! The `weir` of another time, for the tests of upgrades: members of the shared types lie in other
//! places, some are wider, and some are new. It is built from a copy of the sources in which the
//! types are edited, so that the sources themselves know nothing of it.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    ebpf,
    exec::{self, host_cargo, say},
    tree,
};

/// One edit of the copy: what `from` is in the file, which must have it once, becomes `to`.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn edit(file: &'static str, from: &'static str, to: &'static str) -> Edit {
    Edit { file, from, to }
}

const NAT: &str = "lb-common/src/nat.rs";
const EXCEPTION: &str = "lb-common/src/exception.rs";
const BACKEND: &str = "lb-common/src/backend.rs";
const SETTINGS: &str = "lb-common/src/settings.rs";
const SERVICE: &str = "lb-common/src/service.rs";

const EDITS: &[Edit] = &[
    edit(
        NAT,
        "pub struct NatEntry<A> {\n",
        "pub struct NatEntry<A> {\n    pub reserved: u64,\n    pub last_seen_ns: u64,\n",
    ),
    edit(
        NAT,
        "    pub reserved: u32,\n    /// When a packet of this direction last passed, to the second.\n    pub last_seen_ns: u64,\n",
        "",
    ),
    edit(NAT, "size_of::<NatEntry<V4Addr>>() == 48", "size_of::<NatEntry<V4Addr>>() == 56"),
    edit(NAT, "size_of::<NatEntry<V6Addr>>() == 72", "size_of::<NatEntry<V6Addr>>() == 80"),
    edit(
        EXCEPTION,
        "pub struct Exception {\n",
        "pub struct Exception {\n    pub last_seen_ns: u64,\n    pub reserved: u64,\n",
    ),
    edit(
        EXCEPTION,
        "    pub reserved: u32,\n    /// When a packet of it last passed, to the second; CLOCK_BOOTTIME.\n    pub last_seen_ns: u64,\n",
        "",
    ),
    edit(EXCEPTION, "size_of::<Exception>() == 32", "size_of::<Exception>() == 40"),
    edit(
        BACKEND,
        "pub struct Backend {\n",
        "pub struct Backend {\n    pub fresh: u64,\n    pub health: u8,\n    pub admin: u8,\n    pub reserved_first: [u8; 6],\n",
    ),
    edit(
        BACKEND,
        "    /// `ADMIN_*`: the agent's, for its own restart.\n    pub admin: u8,\n    /// `HEALTH_*`: the agent's, for its own restart.\n    pub health: u8,\n    pub reserved: [u8; 2],\n",
        "",
    ),
    edit(BACKEND, "size_of::<Backend>() == 128", "size_of::<Backend>() == 152"),
    edit(BACKEND, "pub type Milliseconds = u32;", "pub type Milliseconds = u64;"),
    edit(
        BACKEND,
        "    pub const FREE: Backend = Backend {\n",
        "    pub const FREE: Backend = Backend {\n        fresh: 0,\n        reserved_first: [0; 6],\n",
    ),
    edit(BACKEND, "        reserved: [0; 2],\n", ""),
    edit(SETTINGS, "pub struct Settings {\n", "pub struct Settings {\n    pub layout: u32,\n    pub flags: u32,\n"),
    edit(SETTINGS, "    /// `FLAG_*`.\n    pub flags: u32,\n", ""),
    edit(
        SETTINGS,
        "    /// Counts the changes of what the maps hold that names and widths of members don't show: see\n    /// `dataplane/migrate/meaning.rs` of the agent.\n    pub layout: u32,\n",
        "",
    ),
    edit(SERVICE, "pub struct Service {\n", "pub struct Service {\n    pub draining_since_ns: u64,\n"),
    edit(
        SERVICE,
        "    /// Since when this VIP and port, which left the file, only lets its flows end; 0 if it is\n    /// served. The agent's, for its own restart.\n    pub draining_since_ns: u64,\n",
        "",
    ),
    edit(SERVICE, "pub struct Stats {\n", "pub struct Stats {\n    pub fresh: u64,\n    pub refused: u64,\n"),
    edit(SERVICE, "    /// Packets of clients that were reset or dropped.\n    pub refused: u64,\n", ""),
    edit(SERVICE, "size_of::<Stats>() == 48", "size_of::<Stats>() == 56"),
];

/// Builds it, and keeps it as `weir-other-layout` beside the usual `weir`.
pub fn build() -> Result<()> {
    let began = Instant::now();
    let tree = edited()?;
    ebpf::build_in(&tree)?;
    // A directory of its own: see `ebpf`.
    let target = tree.join("target");
    let mut cargo = host_cargo(["build", "-p", "lb-userspace", "--bin", "weir"]);
    exec::run(cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &target))?;
    let (built, kept) = (target.join("debug/weir"), exec::target().join("debug/weir-other-layout"));
    std::fs::create_dir_all(exec::target().join("debug"))?;
    std::fs::copy(&built, &kept).with_context(|| format!("can't copy {} to {}", built.display(), kept.display()))?;
    say("build", format_args!("{} in {:.0} s", kept.display(), began.elapsed().as_secs_f32()));
    Ok(())
}

/// The copy, with its types edited. A file is written once, so that its time tells cargo whether it
/// has changed.
fn edited() -> Result<std::path::PathBuf> {
    let files: std::collections::BTreeSet<&str> = EDITS.iter().map(|edit| edit.file).collect();
    let tree = tree::copy_but("other-layout", &files)?;
    for file in files {
        tree::write(&tree.join(file), edited_text(exec::root(), file)?.as_bytes())?;
    }
    Ok(tree)
}

/// The text of a file under `root` after all its edits.
fn edited_text(root: &Path, file: &str) -> Result<String> {
    let path = root.join(file);
    let mut text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    for Edit { from, to, .. } in EDITS.iter().filter(|edit| edit.file == file) {
        ensure!(
            text.matches(from).count() == 1,
            "{file} has changed: an edit of xtask/src/other_layout.rs finds not once {from:?}"
        );
        text = text.replace(from, to);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_is_in_its_file_once() {
        for edit in EDITS {
            edited_text(exec::root(), edit.file).unwrap();
        }
    }
}
