//! Finds or installs the programs that the other commands need, and reports which it uses.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{run_quietly, say},
    guest, packages,
    toolchain::{Compiler, LINKER_VERSION, Origin, Toolchain, Versions, tools, which},
};

/// `cargo xtask setup`: sets up everything.
pub fn everything() -> Result<()> {
    clippy(&toolchain()?)?;
    programs()?;
    guest::setup()?;
    say("ready", "cargo xtask build, demo, test and lint have all that they need");
    Ok(())
}

/// Finds or installs the eBPF toolchain.
pub fn toolchain() -> Result<Toolchain> {
    let mut versions = Versions::load();
    let toolchain = match Toolchain::find(&mut versions) {
        Some(toolchain) => toolchain,
        None => install_toolchain(&mut versions)?,
    };
    versions.save()?;
    let Toolchain { compiler, linker } = &toolchain;
    say("toolchain", format_args!("{} ({}) and {}", compiler.version, compiler.rustc.display(), linker.display()));
    Ok(toolchain)
}

/// Ensures that the toolchain has clippy, of the same version as its compiler.
pub fn clippy(toolchain: &Toolchain) -> Result<()> {
    if toolchain.compiler.clippy.exists() {
        return Ok(());
    }
    match toolchain.compiler.origin {
        Origin::Debian => packages::install(&["rust-web-clippy"], "clippy for the BPF target"),
        Origin::Nightly => {
            bail!("clippy for the BPF target is missing: run `rustup component add --toolchain nightly clippy`")
        }
    }
}

/// Ensures that the programs that the demo and the tests run are installed.
pub fn programs() -> Result<()> {
    const PROGRAMS: [(&str, &str); 10] = [
        ("bpftool", "bpftool"),
        ("curl", "curl"),
        ("ethtool", "ethtool"),
        ("ip", "iproute2"),
        ("iperf3", "iperf3"),
        ("nft", "nftables"),
        ("nginx", "nginx-light"),
        ("sysctl", "procps"),
        ("tcpdump", "tcpdump"),
        ("wrk", "wrk"),
    ];
    need(&PROGRAMS, "programs that the demo and the tests run")?;
    let found = PROGRAMS.map(|(program, _)| program).join(", ");
    say("programs", found);
    Ok(())
}

/// Installs the packages of the programs that are missing. Each pair is a program and its package;
/// `what` describes the programs in errors.
pub fn need(programs: &[(&str, &str)], what: &str) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { packages::install(&missing, what) }
}

fn install_toolchain(versions: &mut Versions) -> Result<Toolchain> {
    let compiler = match Compiler::find(versions) {
        Some(compiler) => compiler,
        None => {
            if !packages::is_debian() {
                bail!(
                    "no compiler for the BPF target: run `rustup toolchain install nightly --component rust-src \
                    --component clippy`"
                );
            }
            packages::install(
                &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"],
                "a compiler for the BPF target",
            )?;
            Compiler::find(versions).context(
                "the packages rustc-web, cargo-web and rust-web-src are installed, but /usr/bin/rustc is older than \
                 1.95: enable bookworm-security in /etc/apt/sources.list, then `apt-get update && apt-get install \
                 rustc-web cargo-web rust-web-src`",
            )?
        }
    };
    if let Some(toolchain) = Toolchain::find(versions) {
        return Ok(toolchain);
    }
    install_linker(compiler.origin)?;
    Toolchain::find(versions).with_context(|| {
        format!("bpf-linker was built, but {} does not start", tools().join("bin/bpf-linker").display())
    })
}

/// bpf-linker must read the compiler's output, so it is built with LLVM of the same release.
fn install_linker(origin: Origin) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"]).arg(tools());
    for name in ["CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    if origin == Origin::Debian {
        if !Path::new("/usr/lib/llvm-22/bin/llvm-config").exists()
            || !Path::new("/usr/lib/llvm-22/lib/libPolly.a").exists()
        {
            packages::install(&["llvm-22-dev", "libpolly-22-dev"], "LLVM 22, to build bpf-linker with")?;
        }
        cargo
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .env("RUSTFLAGS", "-L /usr/lib/llvm-22/lib");
    }
    run_quietly(&format!("build bpf-linker {LINKER_VERSION}"), &tools().join("bpf-linker.log"), &mut cargo)
}
