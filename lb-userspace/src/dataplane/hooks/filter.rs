//! TC programs as filters of clsact, where the kernel has no tcx links.

use std::path::Path;

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle},
};

use super::outcome::{AttachError, Pinned, causes};
use crate::dataplane::{
    bpffs, clsact,
    pins::{Pin, PinKind},
    raw::errno,
};

/// The priority of our filter within clsact: first at ingress, last at egress.
fn priority(direction: TcAttachType) -> u16 {
    if direction == TcAttachType::Egress { u16::MAX } else { 1 }
}

const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Attaches a clsact filter, replacing our filter in place if there is one. Filters have no link
/// that could be pinned, so the pinned program marks the filter as ours.
pub fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    pin: Pin,
    pin_dir: &Path,
) -> Result<Pinned, AttachError> {
    let name = pin.kind.hook();
    let failed = |error: ProgramError| filter_failed(interface, name, direction, &error);
    let path = pin.path(pin_dir);
    let was_ours = path.exists();
    let replaced = if was_ours {
        // Made only to be passed on: dropping it would detach the filter.
        let filter = SchedClassifierLink::attached(interface, direction, priority(direction), FILTER_HANDLE, None);
        match program.attach_to_link(filter.map_err(|error| failed(error.into()))?) {
            Ok(id) => Some(id),
            // There is no such filter, or no clsact qdisc.
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL)) => None,
            Err(error) => return Err(failed(error)),
        }
    } else {
        None
    };
    let (id, pinned) = match replaced {
        Some(id) => (id, Pinned::Alive),
        None => {
            let id = add_filter(program, interface, direction, pin, pin_dir).map_err(failed)?;
            tracing::info!(interface, hook = name, "TC filter attached");
            (id, if was_ours { Pinned::Lost } else { Pinned::None })
        }
    };
    // Dropping it would detach the filter.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    bpffs::pin_over(&path, |path| program.pin(path)).map_err(|source| AttachError::Pin {
        interface: interface.to_owned(),
        path,
        source,
    })?;
    Ok(pinned)
}

fn add_filter(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    pin: Pin,
    pin_dir: &Path,
) -> Result<SchedClassifierLinkId, ProgramError> {
    // This fails if the qdisc already exists; the filter is then added to that one.
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {
            let mark = Pin::new(PinKind::Clsact, pin.ifindex).path(pin_dir);
            if let Err(error) = clsact::mark(&mark) {
                tracing::warn!(interface, %error, "no later `weir cleanup` knows that the clsact qdisc is Weir's, and \
                    it will stay");
            }
        }
        Err(error) => tracing::debug!(interface, %error, "no new clsact qdisc"),
    }
    let attach = |program: &mut SchedClassifier| {
        let options = NlOptions { priority: priority(direction), handle: FILTER_HANDLE, classid: None };
        program.attach_with_options(interface, direction, TcAttachOptions::Netlink(options))
    };
    match attach(program) {
        Err(error) if errno(&error) == Some(libc::EEXIST) => {
            // The filter may be ours with its mark missing, because the agent was killed between
            // attaching and pinning. Our filter is recognised by its name.
            match tc::qdisc_detach_program(interface, direction, pin.kind.hook()) {
                Ok(()) => attach(program),
                Err(_) => Err(error),
            }
        }
        result => result,
    }
}

fn filter_failed(interface: &str, hook: &'static str, direction: TcAttachType, error: &ProgramError) -> AttachError {
    let mut reason = causes(error);
    if errno(error) == Some(libc::EEXIST) {
        let priority = priority(direction);
        reason = format!(
            "another filter has priority {priority} and handle 1 in clsact, and stays: see \
             `tc filter show dev {interface} ingress` and `egress`, and remove it by the tool that owns it"
        );
    }
    AttachError::Attach { interface: interface.to_owned(), hook, reason }
}
