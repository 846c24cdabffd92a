//! Checks the format, the width of lines, which modules use which, circular dependencies between
//! files, and the licences of dependencies; then runs clippy for the host and for the BPF target.

mod circles;
mod comments;
mod house;
mod licences;

use anyhow::Result;

use crate::{
    ebpf,
    exec::{host_cargo, run, say},
    setup,
};

pub fn run_all() -> Result<()> {
    run(&mut host_cargo(["fmt", "--all", "--check"]))?;
    comments::check()?;
    say("format", "ok");
    house::check()?;
    say("house", "ok");
    circles::check()?;
    say("circles", "ok");
    licences::check()?;
    say("licences", "ok");

    // lb-userspace embeds the eBPF object, so clippy needs one, too.
    ebpf::build()?;
    run(&mut host_cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    say("clippy", "host ok");

    let toolchain = setup::toolchain()?;
    setup::clippy(&toolchain)?;
    let mut cargo = toolchain.cargo("check")?;
    // `cargo clippy` itself runs `cargo check` with these variables. Debian's `cargo-clippy` would
    // look for cargo on PATH and find rustup's.
    cargo
        .args(["--lib", "--bins"])
        .env("RUSTC_WORKSPACE_WRAPPER", &toolchain.compiler.clippy)
        .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    run(&mut cargo)?;
    say("clippy", "BPF target ok");
    Ok(())
}
