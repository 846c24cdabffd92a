//! The programs, one packet at a time, by BPF_PROG_TEST_RUN: frames made by an independent library, every byte of what comes out
//! compared with what that library makes of it, every counter looked at. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's own helpers may fail it")]

mod bed;
mod frames;
mod rig;
mod setup;
mod table;
mod tables;
mod talk;

mod dsr;
mod flood;
mod handshake;
mod icmp_errors;
mod keep;
mod life;
mod malformed;
mod next_hop;
mod offload;
mod ports;
mod reasons;
mod select;
mod tc;
mod untouched;
mod verifier;
mod vip;
mod wire;
