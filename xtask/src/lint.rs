//! Lints: format, comment width, allowed module uses, the licences of dependencies, and clippy for
//! the host and for the BPF target.

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

    // lb-userspace embeds the object, so even checking it needs one.
    ebpf::build()?;
    run(&mut host_cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    say("clippy", "host ok");

    let toolchain = setup::toolchain()?;
    setup::clippy(&toolchain)?;
    let mut cargo = toolchain.cargo("check")?;
    // This is what `cargo clippy` does itself. Debian's subcommand would look up cargo on PATH, and
    // get rustup's.
    cargo
        .args(["--lib", "--bins"])
        .env("RUSTC_WORKSPACE_WRAPPER", &toolchain.compiler.clippy)
        .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    run(&mut cargo)?;
    say("clippy", "BPF target ok");
    Ok(())
}
