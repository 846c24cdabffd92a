//! Weir's programs as a library: everything but the entry points, so that the host compiles it and
//! tests what needs no kernel.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    allow(internal_features, reason = "the BPF target has atomic read-modify-write only as intrinsics")
)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic,
        reason = "a panic cannot be in the kernel, and the verifier wants every bound shown"
    )
)]

pub mod answer;
pub mod atomic;
pub mod clock;
pub mod decap;
pub mod decide;
pub mod dsr;
pub mod encap;
pub mod family;
pub mod forward;
pub mod hop;
pub mod icmp;
pub mod maps;
pub mod mss;
pub mod nat;
pub mod packet;
pub mod parse;
pub mod ports;
pub mod rewrite;
pub mod select;
pub mod service;
pub mod trace;
pub mod work;
pub mod xdp;

#[cfg(test)]
mod tests;
