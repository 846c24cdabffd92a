//! Debian kernels, each with its modules and an initrd that finds a guest's disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{run, run_quietly},
    guest::{copy, initrd, part, remove, write},
    packages,
};

/// A kernel, identified by the beginning of its version.
pub struct Linux {
    pub version: &'static str,
    /// Metapackages that depend on the kernel's package; the first one available is used.
    metas: &'static [&'static str],
}

/// Debian 12's default kernel.
pub const OLDEST: Linux = Linux { version: "6.1", metas: &["linux-image-cloud-amd64"] };

/// Debian 13's default kernel; on Debian 12 it is in the security archive.
pub const NEWEST: Linux =
    Linux { version: "6.12", metas: &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"] };

/// The modules that a guest without systemd loads, in this order: the network card's driver, and
/// the drivers of tunnels that end at a backend.
const TUNNELS: [&str; 4] = ["virtio_net", "ipip", "sit", "ip6_tunnel"];

/// A kernel in the cache.
pub struct Unpacked {
    pub dir: PathBuf,
    /// The output of `uname -r`.
    pub release: String,
}

/// Puts a kernel into the cache: `vmlinuz`, `initrd`, `release`, `lib/modules/`, and for guests
/// without systemd `modules/` and `order` (the module names, one per line).
pub fn bring(linux: &Linux) -> Result<Unpacked> {
    let recipe = format!("{}\n{:?}\n{}\n{}", linux.metas.join(" "), TUNNELS, initrd::recipe(), FORMAT);
    let dir = part(&format!("linux-{}", linux.version), &recipe, |new| build(linux, new))?;
    let release = fs::read_to_string(dir.join("release")).context("a kernel in the cache has no release")?;
    Ok(Unpacked { dir, release })
}

/// The version of [`build`]'s output. Increase it when that output changes, so that caches are
/// rebuilt.
const FORMAT: u32 = 1;

fn build(linux: &Linux, new: &Path) -> Result<()> {
    let package = packages::dependency_of(linux.metas)?;
    let release = package.trim_start_matches("linux-image-");
    if !release.starts_with(&format!("{}.", linux.version)) {
        bail!(
            "apt has {package} instead of a kernel {}: the guest suite needs Debian 12 (bookworm, with \
            bookworm-security)",
            linux.version
        );
    }
    let archive = packages::download(&package, new)?;
    let unpacked = new.join("unpacked");
    run_quietly(
        &format!("unpack {package}"),
        &new.join("unpack.log"),
        Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked),
    )?;
    copy(&unpacked.join(format!("boot/vmlinuz-{release}")), &new.join("vmlinuz"))?;
    // Debian has had a merged /usr since trixie.
    let places = ["lib/modules", "usr/lib/modules"].map(|place| unpacked.join(place).join(release));
    let from = places.iter().find(|place| place.is_dir()).with_context(|| format!("{package} has no modules"))?;
    let modules = new.join("lib/modules").join(release);
    fs::create_dir_all(new.join("lib/modules")).context("can't make lib/modules")?;
    fs::rename(from, &modules).with_context(|| format!("can't make {}", modules.display()))?;
    run(Command::new("depmod").arg("-b").arg(new).arg(release))?;

    let dependencies = Dependencies::read(&modules)?;
    dependencies.unpack(&TUNNELS, &new.join("modules"), &new.join("order"))?;
    initrd::build(&dependencies, new)?;
    remove(&unpacked)?;
    remove(&archive)?;
    write(&new.join("release"), release)
}

/// The dependencies between modules, from `depmod`.
pub struct Dependencies {
    modules: PathBuf,
    /// By module name: the path of the module and of all modules that it needs, in reverse loading
    /// order.
    needed: BTreeMap<String, Vec<String>>,
}

impl Dependencies {
    fn read(modules: &Path) -> Result<Self> {
        let path = modules.join("modules.dep");
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let needed = text.lines().filter_map(|line| {
            let (module, others) = line.split_once(':')?;
            let all = std::iter::once(module).chain(others.split_whitespace()).map(str::to_owned);
            Some((name_of(module), all.collect()))
        });
        Ok(Self { modules: modules.to_owned(), needed: needed.collect() })
    }

    /// Puts these modules and their dependencies, decompressed, into `to`, and their names into
    /// `order`. Modules built into the kernel are skipped.
    pub fn unpack(&self, names: &[&str], to: &Path, order: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
        let mut written: Vec<String> = Vec::new();
        for module in names.iter().filter_map(|name| self.needed.get(*name)).flat_map(|all| all.iter().rev()) {
            let name = format!("{}.ko", name_of(module));
            if written.contains(&name) {
                continue;
            }
            let file = module.rsplit('/').next().unwrap_or(module);
            copy(&self.modules.join(module), &to.join(file))?;
            if file.ends_with(".xz") {
                run(Command::new("busybox").arg("unxz").arg(to.join(file)))?;
            }
            let plain = to.join(file.trim_end_matches(".xz"));
            fs::rename(&plain, to.join(&name)).with_context(|| format!("can't rename {}", plain.display()))?;
            written.push(name);
        }
        write(order, &written.iter().map(|name| format!("{name}\n")).collect::<String>())
    }
}

/// The module name, such as `ip6_tunnel` for `kernel/net/ipv6/ip6_tunnel.ko.xz`. File names may
/// have dashes where module names have underscores.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn a_module_is_known_by_its_name_and_not_by_its_file() {
        assert_eq!(name_of("kernel/net/ipv6/ip6_tunnel.ko.xz"), "ip6_tunnel");
        assert_eq!(name_of("kernel/arch/x86/crypto/crc32c-intel.ko"), "crc32c_intel");
    }
}
