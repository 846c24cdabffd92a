//! Virtual machines for tests, where this machine's kernel lacks something: QEMU, which needs no KVM, and a Debian kernel that is
//! unpacked under target/ and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{run, run_quietly, say, target},
    packages, setup,
};

/// Packages that name a kernel with the tunnels, the first that is to be had: on bookworm 6.12 is in the security archive, on trixie it is the kernel.
const KERNELS: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// What a guest loads, in this order: a network card, and the tunnels that end at a backend.
const MODULES: [&str; 9] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/ipv4/tunnel4",
    "net/ipv4/ip_tunnel",
    "net/ipv4/ipip",
    "net/ipv6/tunnel6",
    "net/ipv6/sit",
    "net/ipv6/ip6_tunnel",
];

/// The programs, and `vmlinuz`, `modules/` and `order` (their names, a line each) in target/guest.
pub fn setup() -> Result<()> {
    setup::need(
        &[("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")],
        "what guests are made of",
    )?;
    let dir = target().join("guest");
    let version = dir.join("version");
    if !version.exists() {
        bring(&dir)?;
    }
    let version = fs::read_to_string(&version).with_context(|| format!("can't read {}", version.display()))?;
    say("guest", format_args!("{} in {}", version.trim(), dir.display()));
    Ok(())
}

fn bring(dir: &Path) -> Result<()> {
    if !packages::is_debian() {
        bail!(
            "a kernel for guests is missing: the end-to-end suite takes it from Debian's package {}; run that suite on Debian",
            KERNELS[0]
        );
    }
    // Whatever a run that was interrupted has left.
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("can't remove {}", dir.display()))?;
    }
    let unpacked = dir.join("unpacked");
    fs::create_dir_all(&unpacked).with_context(|| format!("can't make {}", unpacked.display()))?;
    let package = packages::dependency_of(&KERNELS)?;
    let archive = packages::download(&package, dir)?;
    run_quietly(
        &format!("unpack {package}"),
        &dir.join("unpack.log"),
        Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked),
    )?;
    let release = package.trim_start_matches("linux-image-");
    take(&unpacked.join(format!("boot/vmlinuz-{release}")), &dir.join("vmlinuz"))?;
    modules(&unpacked, release, dir)?;
    for path in [&unpacked, &archive] {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.with_context(|| format!("can't remove {}", path.display()))?;
    }
    // Last: it says that all the rest is there.
    write(&dir.join("version"), &format!("{package}\n"))
}

fn modules(unpacked: &Path, release: &str, dir: &Path) -> Result<()> {
    let to = dir.join("modules");
    fs::create_dir_all(&to).with_context(|| format!("can't make {}", to.display()))?;
    // Debian has merged /usr since trixie.
    let places = ["lib/modules", "usr/lib/modules"].map(|place| unpacked.join(place).join(release).join("kernel"));
    let from =
        places.iter().find(|place| place.is_dir()).with_context(|| format!("{release} comes without modules"))?;
    let mut order = String::new();
    for module in MODULES {
        let name = format!("{}.ko", module.rsplit('/').next().unwrap_or(module));
        let (plain, compressed) = (to.join(&name), from.join(format!("{module}.ko.xz")));
        if compressed.exists() {
            let packed = PathBuf::from(format!("{}.xz", plain.display()));
            take(&compressed, &packed)?;
            run(Command::new("busybox").arg("unxz").arg(&packed))?;
        } else {
            take(&from.join(format!("{module}.ko")), &plain)?;
        }
        order += &format!("{name}\n");
    }
    write(&dir.join("order"), &order)
}

fn take(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}
