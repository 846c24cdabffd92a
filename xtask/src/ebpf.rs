//! The eBPF object.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    exec::{self, run, say},
    setup,
    toolchain::{TARGET, build_dir},
};

/// Builds the object if cargo finds that something has changed, and puts it where the build script of lb-userspace looks for it.
pub fn build() -> Result<PathBuf> {
    let toolchain = setup::toolchain()?;
    run(toolchain.cargo("build")?.args(["--bin", "weir-ebpf"]))?;

    let built = build_dir().join(TARGET).join("release/weir-ebpf");
    let object = exec::root().join("target/ebpf/weir.bpf.o");
    let bytes = std::fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
    // The same bytes keep their time, so that lb-userspace isn't built again.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        let dir = exec::root().join("target/ebpf");
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        // By rename: a build that reads it at this moment sees the old one or the new one.
        let new = dir.join("weir.bpf.o.new");
        std::fs::write(&new, &bytes).with_context(|| format!("can't write {}", new.display()))?;
        std::fs::rename(&new, &object).with_context(|| format!("can't write {}", object.display()))?;
    }
    say("object", format_args!("{} ({} bytes)", object.display(), bytes.len()));
    Ok(object)
}
