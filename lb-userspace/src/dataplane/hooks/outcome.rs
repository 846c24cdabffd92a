//! The result of attaching a hook, and why it could not be attached.

use std::{io, path::PathBuf};

use aya::pin::PinError;

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "{interface}: the XDP hook is taken by {program} (id {id}, {mode}): detach it with \
         `ip link set dev {interface} xdp off` or by the tool that owns it, or take {interface} out of `interfaces`"
    )]
    Taken { interface: String, program: String, id: u32, mode: &'static str },
    #[error("{interface}: no native XDP ({reason}): set `xdpMode: auto` or `generic`")]
    NoNative { interface: String, reason: String },
    #[error("{interface}: XDP links need Linux 5.9 or later, this is {kernel}")]
    NoLinks { interface: String, kernel: String },
    #[error("{interface}: cannot attach {hook}: {reason}")]
    Attach { interface: String, hook: &'static str, reason: String },
    #[error("{interface}: cannot pin {}: {source}", .path.display())]
    Pin { interface: String, path: PathBuf, source: PinError },
    #[error("cannot remove the pin {}: {source}", .path.display())]
    Unpin { path: PathBuf, source: io::Error },
}

/// The state of a pinned link or filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pinned {
    /// Attached, with the program of this process.
    Alive,
    /// Detached by someone, or its interface is gone.
    Lost,
    /// There is no pin.
    None,
}

/// The error with its causes: aya's messages name the call, and their sources give the reason.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}
