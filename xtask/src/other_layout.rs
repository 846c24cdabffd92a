//! Builds a second `weir`, whose maps have another layout, for the tests of upgrades: in the types
//! of lb-common, some members have other offsets, some are wider, and some are new. It is built
//! from a copy of the sources in which these types are edited, so that the real sources contain
//! nothing for this purpose.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{
    ebpf,
    exec::{self, say},
    tree::{self, Edit},
};

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
        "    pub reserved: u32,\n    /// When a packet of this direction last passed, to the second.\n    pub \
        last_seen_ns: u64,\n",
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
        "    pub reserved: u32,\n    /// When a packet of it last passed, to the second; CLOCK_BOOTTIME.\n    pub \
        last_seen_ns: u64,\n",
        "",
    ),
    edit(EXCEPTION, "size_of::<Exception>() == 32", "size_of::<Exception>() == 40"),
    edit(
        BACKEND,
        "pub struct Backend {\n",
        "pub struct Backend {\n    pub fresh: u64,\n    pub health: u8,\n    pub admin: u8,\n    pub reserved_first: \
        [u8; 6],\n",
    ),
    edit(
        BACKEND,
        "    /// `ADMIN_*`: the agent's, for its own restart.\n    pub admin: u8,\n    /// `HEALTH_*`: the agent's, \
        for its own restart.\n    pub health: u8,\n    pub reserved: [u8; 2],\n",
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
        "    /// Counts the changes of what the maps hold that names and widths of members don't show: see\n    /// \
        `dataplane/migrate/meaning.rs` of the agent.\n    pub layout: u32,\n",
        "",
    ),
    edit(SERVICE, "pub struct Service {\n", "pub struct Service {\n    pub draining_since_ns: u64,\n"),
    edit(
        SERVICE,
        "    /// Since when this VIP and port, which left the file, only lets its flows end; 0 if it is\n    /// \
        served. The agent's, for its own restart.\n    pub draining_since_ns: u64,\n",
        "",
    ),
    edit(SERVICE, "pub struct Stats {\n", "pub struct Stats {\n    pub fresh: u64,\n    pub refused: u64,\n"),
    edit(SERVICE, "    /// Packets of clients that were reset or dropped.\n    pub refused: u64,\n", ""),
    edit(SERVICE, "size_of::<Stats>() == 48", "size_of::<Stats>() == 56"),
];

/// Builds this second `weir` as `weir-other-layout`, beside the usual `weir`.
pub fn build() -> Result<()> {
    let began = Instant::now();
    let tree = tree::copy("other-layout", EDITS)?;
    ebpf::build_in(&tree)?;
    exec::run(&mut tree::host_cargo(&tree, ["build", "-p", "lb-userspace", "--bin", "weir"]))?;
    let debug = exec::target().join("debug");
    let (built, kept) = (tree.join("target/debug/weir"), debug.join("weir-other-layout"));
    std::fs::create_dir_all(&debug)?;
    std::fs::copy(&built, &kept).with_context(|| format!("can't copy {} to {}", built.display(), kept.display()))?;
    say("build", format_args!("{} in {:.0} s", kept.display(), began.elapsed().as_secs_f32()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_edit_is_in_its_file_once() {
        let mut texts = BTreeMap::new();
        for edit in EDITS {
            let read = || std::fs::read_to_string(exec::root().join(edit.file)).unwrap();
            let text = texts.entry(edit.file).or_insert_with(read);
            *text = edit.apply(text).unwrap();
        }
    }
}
