//! Finds the eBPF object that the binary carries: `$WEIR_BPF_OBJECT`, or where
//! `cargo xtask build-ebpf` puts it.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=WEIR_BPF_OBJECT");
    let object = match env::var_os("WEIR_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../target/ebpf/weir.bpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=WEIR_BPF_OBJECT_PATH={}", object.display()),
        Err(error) => println!("cargo::error={}: {error}; run `cargo xtask build-ebpf`", object.display()),
    }
}
