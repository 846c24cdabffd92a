//! Switches every hook to the new program, one right after the other. Between the first and the
//! last, some packets are handled with the old maps and some with the new ones.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{ProgramError, SchedClassifier, TcAttachType},
};
use nix::net::if_::if_indextoname;

use super::record::Record;
use crate::dataplane::{
    hooks::filter::attach_filter,
    pins::{Pin, PinKind},
    programs,
    raw::objects::Link,
};

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot give {hook} of interface {ifindex} the new program: {source}{}",
    if *.is_half_done { "; some hooks already run the new program, and the next start finishes the switch" } else { "" }
)]
pub struct SwitchError {
    hook: &'static str,
    ifindex: u32,
    source: ProgramError,
    /// A hook that was already switched could not be given its old program back.
    pub is_half_done: bool,
}

/// A hook that has a link, and the id of the program that it ran when it was opened.
struct SwitchedHook {
    pin: Pin,
    link: Link,
    program: u32,
}

/// The pinned hooks, held open so that switching them takes no time.
pub struct SwitchedHooks {
    pin_dir: PathBuf,
    links: Vec<SwitchedHook>,
    filters: Vec<Pin>,
}

impl SwitchedHooks {
    /// Skips links that can't be opened; attaching reports what is wrong with them.
    pub fn open(pin_dir: &Path) -> io::Result<Self> {
        let hooks = Pin::list(pin_dir)?.into_iter().filter(|pin| pin.kind.is_hook());
        let (links, filters): (Vec<Pin>, Vec<Pin>) = hooks.partition(|pin| pin.kind.is_link());
        let open = |pin: Pin| {
            Some(SwitchedHook { pin, link: Link::open(&pin.path(pin_dir)).ok()?, program: pin.program(pin_dir).ok()? })
        };
        Ok(Self { pin_dir: pin_dir.to_owned(), links: links.into_iter().filter_map(open).collect(), filters })
    }

    pub fn len(&self) -> usize {
        self.links.len() + self.filters.len()
    }

    /// Switches all hooks. If the kernel refuses one link, the links switched before it get their
    /// old programs back.
    pub fn switch(&self, ebpf: &mut Ebpf, record: &Record) -> Result<(), SwitchError> {
        for (number, hook) in self.links.iter().enumerate() {
            let (name, ifindex) = (hook.pin.kind.hook(), hook.pin.ifindex);
            let failed = |source, is_half_done| SwitchError { hook: name, ifindex, source, is_half_done };
            let program = ebpf.program(hook.pin.kind.hook()).ok_or(ProgramError::NotLoaded);
            let updated = program.and_then(|program| Ok(hook.link.update(program.fd()?.as_fd())?));
            match updated {
                // The interface is gone: attaching detects that too.
                Err(ProgramError::IOError(error)) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => {
                    // Switch back every link, even if one of them fails.
                    let back = self.links.iter().take(number).map(|hook| hook.switch_back(&self.pin_dir, record));
                    let is_half_done = back.collect::<Vec<_>>().contains(&false);
                    return Err(failed(error, is_half_done));
                }
                Ok(()) => {}
            }
        }
        for pin in &self.filters {
            // All links are switched by now, and stay so. A filter that fails is tried again at the
            // next sync of the hooks.
            if let Err(error) = switch_filter(*pin, ebpf, &self.pin_dir) {
                tracing::error!(ifindex = pin.ifindex, hook = pin.kind.hook(), %error, "the filter keeps the old \
                    program for now");
            }
        }
        Ok(())
    }
}

impl SwitchedHook {
    /// Gives the hook the program pinned by an earlier start, if that is the hook's old program, or
    /// one with the same maps that an interrupted start loaded later. Returns whether it worked.
    fn switch_back(&self, pin_dir: &Path, record: &Record) -> bool {
        let name = self.pin.kind.hook();
        let maps = |program: u32| record.programs.get(&program);
        let switched = programs::pinned(pin_dir, name).and_then(|(id, program)| {
            if id != self.program && (maps(id).is_none() || maps(id) != maps(self.program)) {
                return Err(io::Error::other("the pinned program uses other maps"));
            }
            self.link.update(program.as_fd())
        });
        if let Err(error) = &switched {
            tracing::error!(hook = name, ifindex = self.pin.ifindex, %error, "the hook does not get its old program \
                again");
        }
        switched.is_ok()
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
    attach_filter(program, &interface, direction, pin, pin_dir)?;
    Ok(())
}
