//! The programs, one packet at a time, by BPF_PROG_TEST_RUN: frames made by an independent library,
//! every byte of what comes out compared with what that library makes of it, every counter looked
//! at. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

mod bed;
mod frames;
mod rig;
mod setup;
mod table;
mod tables;
mod talk;

mod decap;
mod dsr;
mod flood;
mod handshake;
mod icmp_errors;
mod ipip;
mod keep;
mod life;
mod malformed;
mod next_hop;
mod offload;
mod ports;
mod reasons;
mod select;
mod tc;
mod too_big;
mod trace;
mod untouched;
mod verifier;
mod vip;
mod wire;
