//! Builds the eBPF objects.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{
    exec::{self, run, say},
    setup,
    toolchain::{TARGET, build_dir},
};

/// Builds Weir's object if cargo finds changes, and puts it where the build script of lb-userspace
/// looks for it.
pub fn build() -> Result<PathBuf> {
    build_in(exec::root())
}

/// Builds Weir's object from the sources in `tree`, which is the repository or a copy of it
/// ([`crate::tree`]), and puts it where the lb-userspace of `tree` looks for it.
pub fn build_in(tree: &Path) -> Result<PathBuf> {
    build_bin(tree, "weir-ebpf", "weir.bpf.o")
}

/// Builds the object of `bench packet`: the wrapper and the baseline program.
pub fn build_bench() -> Result<PathBuf> {
    build_bin(exec::root(), "weir-bench-ebpf", "bench.bpf.o")
}

fn build_bin(tree: &Path, bin: &str, name: &str) -> Result<PathBuf> {
    // A copy has its own target directory, for the reason given at `tree::host_cargo`.
    let directory = if tree == exec::root() { build_dir() } else { tree.join("target/ebpf-build") };
    run(setup::toolchain()?.cargo_into("build", &directory)?.current_dir(tree).args(["--bin", bin]))?;

    let built = directory.join(TARGET).join("release").join(bin);
    let dir = tree.join("target/ebpf");
    let object = dir.join(name);
    let bytes = std::fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
    // Unchanged bytes keep their time stamp, so that lb-userspace isn't rebuilt.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        // Replace the file by rename, so that a concurrent build reads either the old or the new
        // object.
        let new = dir.join(format!("{name}.new"));
        std::fs::write(&new, &bytes).with_context(|| format!("can't write {}", new.display()))?;
        std::fs::rename(&new, &object).with_context(|| format!("can't write {}", object.display()))?;
    }
    say("object", format_args!("{} ({} bytes)", object.display(), bytes.len()));
    Ok(object)
}
