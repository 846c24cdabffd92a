//! What needs no kernel, on the host: headers read from plain bytes, and rewritten there.

mod bytes;
mod parse;
mod rewrite;
