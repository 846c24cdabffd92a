//! Gives every hook the new program, one right after the other: between the first and the last some packets meet the old maps and some the new ones.

use std::{io, path::Path};

use aya::{
    Ebpf,
    programs::{
        ProgramError, ProgramFd, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use nix::net::if_::if_indextoname;

use crate::dataplane::{
    attach,
    pins::{Pin, PinKind},
    raw::objects::Link,
};

#[derive(Debug, thiserror::Error)]
#[error("cannot give {hook} of interface {ifindex} the new program: {source}")]
pub struct SwitchError {
    hook: &'static str,
    ifindex: u32,
    source: ProgramError,
}

/// A hook that has a link, and what it runs now.
struct Hook {
    pin: Pin,
    link: Link,
    program: u32,
}

/// The hooks that are pinned, held open so that switching them takes no time.
pub struct Hooks {
    links: Vec<Hook>,
    filters: Vec<Pin>,
}

impl Hooks {
    /// A link that can't be opened is none; attaching says what is wrong with it.
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let (links, filters): (Vec<Pin>, Vec<Pin>) =
            Pin::list(pin_dir)?.into_iter().partition(|pin| pin.kind.is_link());
        let open = |pin: Pin| {
            let path = pin.path(pin_dir);
            let program = FdLink::from(PinnedLink::from_pin(&path).ok()?).info().ok()?.program_id();
            Some(Hook { pin, link: Link::open(&path).ok()?, program })
        };
        Ok(Self { links: links.into_iter().filter_map(open).collect(), filters })
    }

    pub fn len(&self) -> usize {
        self.links.len() + self.filters.len()
    }

    /// Switches all of them. If the kernel refuses one link, those before get their old programs again.
    pub fn switch(&self, ebpf: &mut Ebpf, pin_dir: &Path) -> Result<(), SwitchError> {
        for (number, hook) in self.links.iter().enumerate() {
            let failed = |source| SwitchError { hook: hook.pin.kind.hook(), ifindex: hook.pin.ifindex, source };
            let program = ebpf.program(hook.pin.kind.hook()).ok_or(ProgramError::NotLoaded);
            let updated = program.and_then(|program| Ok(hook.link.update(program.fd()?)?));
            match updated {
                // Its interface is gone: attaching sees that too.
                Err(ProgramError::IOError(error)) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => {
                    self.links.iter().take(number).for_each(Hook::switch_back);
                    return Err(failed(error));
                }
                Ok(()) => {}
            }
        }
        for pin in &self.filters {
            // Where filters are, no link can fail any more; one that does is tried again when the hooks are looked after.
            if let Err(error) = switch_filter(*pin, ebpf, pin_dir) {
                tracing::error!(ifindex = pin.ifindex, hook = pin.kind.hook(), %error, "the filter keeps the old program for now");
            }
        }
        Ok(())
    }
}

impl Hook {
    fn switch_back(&self) {
        let switched = self.old_program().and_then(|program| Ok(self.link.update(&program)?));
        if let Err(error) = switched {
            let (hook, ifindex) = (self.pin.kind.hook(), self.pin.ifindex);
            tracing::error!(hook, ifindex, %error, "the hook does not get its old program again");
        }
    }

    fn old_program(&self) -> Result<ProgramFd, ProgramError> {
        let is_it =
            |info: &Result<aya::programs::ProgramInfo, _>| info.as_ref().is_ok_and(|info| info.id() == self.program);
        loaded_programs().find(is_it).unwrap_or(Err(ProgramError::NotLoaded))?.fd()
    }
}

fn switch_filter(pin: Pin, ebpf: &mut Ebpf, pin_dir: &Path) -> anyhow::Result<()> {
    let direction = match pin.kind {
        PinKind::FilterEgress => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    };
    let interface = if_indextoname(pin.ifindex)?.to_string_lossy().into_owned();
    let program = ebpf.program_mut(pin.kind.hook()).ok_or(ProgramError::NotLoaded)?;
    let program: &mut SchedClassifier = program.try_into()?;
    attach::attach_filter(program, &interface, direction, pin.kind.hook(), &pin.path(pin_dir))?;
    Ok(())
}
