//! Finds the compiler and linker for the eBPF object.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result};

use crate::exec;

/// A compiler that can build `core` for the BPF target, and a matching linker.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiler {
    pub origin: Origin,
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    pub clippy: PathBuf,
    /// The output of `rustc --version`.
    pub version: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A rustup nightly with the component rust-src.
    Nightly,
    /// Debian's rustc-web, cargo-web and rust-web-src.
    Debian,
}

/// The version of bpf-linker that `setup` installs.
pub const LINKER_VERSION: &str = "0.13.0";

/// The directory for the tools that `setup` builds, so that it does not change the user's own.
pub fn tools() -> PathBuf {
    exec::root().join("target/tools")
}

impl Compiler {
    /// A nightly with rust-src if there is one, else Debian's packages, if they are complete.
    pub fn find(versions: &mut Versions) -> Option<Self> {
        Self::nightly(versions).or_else(|| Self::debian(versions))
    }

    fn nightly(versions: &mut Versions) -> Option<Self> {
        let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")))?;
        let mut found: Vec<PathBuf> = std::fs::read_dir(home.join("toolchains"))
            .ok()?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
            .map(|entry| entry.path())
            .filter(|dir| dir.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
            .collect();
        // Prefer `nightly-x86_64-…` to `nightly-2026-01-01-x86_64-…`: rustup updates the former.
        found.sort_by_key(|dir| dir.file_name().map(|name| name.len()));
        let dir = found.first()?.join("bin");
        let rustc = dir.join("rustc");
        let version = versions.of(&rustc)?;
        Some(Self {
            origin: Origin::Nightly,
            cargo: dir.join("cargo"),
            clippy: dir.join("clippy-driver"),
            rustc,
            version,
        })
    }

    fn debian(versions: &mut Versions) -> Option<Self> {
        let rustc = PathBuf::from("/usr/bin/rustc");
        let source = Path::new("/usr/lib/rustlib/src/rust/library/core/Cargo.toml");
        let old_source = Path::new("/usr/src/rustc/library/core/Cargo.toml");
        let cargo = PathBuf::from("/usr/bin/cargo");
        if !(source.exists() || old_source.exists()) || !cargo.exists() {
            return None;
        }
        let version = versions.of(&rustc)?;
        // Debian 12's own rustc is 1.63, which supports neither the edition nor the target's
        // atomics.
        let minor: u32 = version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()?;
        (minor >= 95).then(|| Self {
            origin: Origin::Debian,
            cargo,
            rustc,
            clippy: "/usr/bin/clippy-driver".into(),
            version,
        })
    }
}

impl Toolchain {
    /// The installed toolchain; `None` if any part of it is missing.
    pub fn find(versions: &mut Versions) -> Option<Self> {
        let compiler = Compiler::find(versions)?;
        let linker = find_linker(versions)?;
        Some(Self { compiler, linker })
    }

    /// Cargo with this compiler for the BPF target. Removes the variables set by the cargo and the
    /// rustup shim that run xtask, because they would select another compiler.
    pub fn cargo(&self, subcommand: &str) -> Result<Command> {
        self.cargo_into(subcommand, &build_dir())
    }

    /// Like `cargo`, with another target directory.
    pub fn cargo_into(&self, subcommand: &str, target: &Path) -> Result<Command> {
        let mut path = OsString::from(self.linker.parent().context("bpf-linker has no directory")?);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());

        let mut cargo = Command::new(&self.compiler.cargo);
        cargo.current_dir(exec::root());
        for name in FOREIGN {
            cargo.env_remove(name);
        }
        cargo
            .env("PATH", path)
            .env("RUSTC", &self.compiler.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
            .args([
                subcommand,
                "--release",
                "-Z",
                "build-std=core",
                "--target",
                TARGET,
                "-p",
                "lb-ebpf",
                "--features",
                "bpf",
            ])
            .arg("--target-dir")
            .arg(target);
        Ok(cargo)
    }
}

pub const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Cargo's target directory for the BPF target, whose compiler and flags differ from the host's.
pub fn build_dir() -> PathBuf {
    exec::root().join("target/ebpf-build")
}

/// Debug information and BTF let bpftool and libbpf load the object; v3 adds 32-bit arithmetic and
/// jumps.
const RUSTFLAGS: [&str; 3] = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// Variables that the cargo and the rustup shim that run xtask may have set.
const FOREIGN: [&str; 12] = [
    "CARGO",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "LD_LIBRARY_PATH",
];

/// Finds bpf-linker, first the one that `setup` built. A linker that can't start (because its LLVM
/// is gone) is skipped.
fn find_linker(versions: &mut Versions) -> Option<PathBuf> {
    let own = tools().join("bin/bpf-linker");
    let others = which("bpf-linker").into_iter().chain(home().map(|home| home.join(".cargo/bin/bpf-linker")));
    std::iter::once(own).chain(others).find(|path| versions.of(path).is_some())
}

/// Finds a program on PATH, or in the directories that only root's PATH has on Debian.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

/// The `--version` output of programs, cached until the program's file changes: to start a compiler
/// takes longer than the rest of a `setup` that finds everything.
pub struct Versions {
    /// The file of the cache.
    stamp: PathBuf,
    /// Versions by path, size and time of the program's file.
    known: BTreeMap<String, String>,
    changed: bool,
}

impl Versions {
    pub fn load() -> Self {
        let stamp = tools().join("versions");
        // If the cache can't be read, every program is run again.
        let text = std::fs::read_to_string(&stamp).unwrap_or_default();
        let known = text.lines().filter_map(|line| line.split_once('\t')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Self { stamp, known: known.collect(), changed: false }
    }

    /// The version of `program`; `None` if there is no such file, or if it can't be run.
    fn of(&mut self, program: &Path) -> Option<String> {
        let metadata = std::fs::metadata(program).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let key = format!("{} {} {}", program.display(), metadata.len(), modified.as_nanos());
        if let Some(version) = self.known.get(&key) {
            return Some(version.clone());
        }
        let output = Command::new(program).arg("--version").env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        if !output.status.success() || version.is_empty() {
            return None;
        }
        self.known.insert(key, version.clone());
        self.changed = true;
        Some(version)
    }

    pub fn save(&self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        std::fs::create_dir_all(tools()).with_context(|| format!("can't make {}", tools().display()))?;
        let text: String = self.known.iter().map(|(key, version)| format!("{key}\t{version}\n")).collect();
        std::fs::write(&self.stamp, text).with_context(|| format!("can't write {}", self.stamp.display()))
    }
}
