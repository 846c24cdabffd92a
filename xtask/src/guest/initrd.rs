//! The initial file system (initrd) of guests with systemd: it loads the disk's drivers, mounts the
//! disk and starts systemd from it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    exec::run,
    guest::{copy, executable, linux::Dependencies, remove},
    toolchain::which,
};

/// The modules that the kernel needs to find and read the disk. One kernel or the other has some of
/// them built in.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4"];
const INIT: &str = include_str!("files/init");

pub fn recipe() -> String {
    format!("{MODULES:?}\n{INIT}")
}

/// Makes `initrd` in `dir`.
pub fn build(dependencies: &Dependencies, dir: &Path) -> Result<()> {
    let root = dir.join("initrd-files");
    for name in ["proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("can't make {}", root.join(name).display()))?;
    }
    let busybox = which("busybox").context("busybox is missing")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    dependencies.unpack(&MODULES, &root.join("modules"), &root.join("order"))?;
    executable(&root.join("init"), INIT)?;
    let archive = "cd \"$0\" && find . | busybox cpio -o -H newc > ../initrd 2> ../initrd.log";
    run(Command::new("sh").args(["-c", archive]).arg(&root))?;
    remove(&root)
}
