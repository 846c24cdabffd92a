//! What Weir's kernel program and its agent share: the layout of every map, and the pure functions
//! that both sides need.
//!
//! Rules of layout: every shared type is `repr(C)`, of integers only, with explicit padding and its
//! size asserted. A field ending in `_be` is in network byte order, and so is every address: an
//! address is the words of the header as they lie in memory ([`flow::V4Addr`], [`flow::V6Addr`]).
//! Times end in `_ns` and are nanoseconds of CLOCK_BOOTTIME.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, reason = "this code also runs in the kernel, where a panic cannot be")
)]

pub mod backend;
pub mod bench;
pub mod checksum;
pub mod exception;
pub mod filter;
pub mod flow;
pub mod hash;
pub mod limits;
pub mod nat;
pub mod ports;
pub mod service;
pub mod settings;
pub mod slot;
pub mod syn;
pub mod trace;
pub mod verdict;
