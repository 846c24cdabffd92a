//! The hooks on each interface: an XDP link, and a TC link (or filter) for each direction. Links
//! are pinned; a restarted agent takes them over and replaces their programs in place, so an
//! interface is never without a program.

pub(super) mod filter;
mod outcome;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpLink, XdpMode as AttachMode},
    },
    util::KernelVersion,
};
use lb_common::limits::program;

pub use self::outcome::AttachError;
use self::{
    filter::attach_filter,
    outcome::{Pinned, causes},
};
use super::{
    pins::{self, Pin, PinKind},
    programs::{self, Name},
};
use crate::{
    model::XdpMode,
    node::interfaces::{HookMode, Interface, XdpHook},
};

/// What is attached to one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    pub ifindex: u32,
    pub name: String,
    /// `None`: no XDP program of ours is attached; `problem` says why.
    pub xdp: Option<HookMode>,
    pub tc: TcHook,
    /// Another XDP program is attached, and stays.
    pub is_taken: bool,
    /// Empty when all is well.
    pub problem: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcHook {
    /// Links, from Linux 6.6 on.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
    None,
}

impl TcHook {
    /// The TC hook that this kernel supports.
    pub fn of_kernel() -> Self {
        let has_tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
        if has_tcx { TcHook::Tcx } else { TcHook::Clsact }
    }

    /// The value of `InterfaceView::tc`.
    pub const fn name(self) -> &'static str {
        match self {
            TcHook::Tcx => "tcx",
            TcHook::Clsact => "clsact",
            TcHook::None => "none",
        }
    }
}

/// The hooks as this process knows them.
pub struct Hooks {
    pin_dir: PathBuf,
    /// How programs are attached at TC.
    pub tc: TcHook,
    attached: BTreeMap<u32, Hook>,
    /// How often a hook of ours disappeared without our doing.
    pub lost: u64,
}

const DIRECTIONS: [(&str, TcAttachType, PinKind, PinKind); 2] = [
    (program::INGRESS, TcAttachType::Ingress, PinKind::LinkIngress, PinKind::FilterIngress),
    (program::EGRESS, TcAttachType::Egress, PinKind::LinkEgress, PinKind::FilterEgress),
];

impl Hooks {
    pub fn new(pin_dir: &Path, tc: TcHook) -> Self {
        Self { pin_dir: pin_dir.to_owned(), tc, attached: BTreeMap::new(), lost: 0 }
    }

    /// Attaches our programs to the interfaces in `wanted` and releases the hooks on all other
    /// interfaces. Hooks that are in order are not touched, so this also finds lost hooks and
    /// attaches them again: call it at start, when interfaces have changed, and periodically. The
    /// interfaces must have been listed just before.
    pub fn sync(&mut self, ebpf: &mut Ebpf, wanted: &[&Interface], mode: XdpMode) -> Vec<Hook> {
        self.release_others(wanted);
        let hooks: Vec<Hook> = wanted.iter().map(|interface| self.sync_interface(ebpf, interface, mode)).collect();
        self.attached = hooks.iter().map(|hook| (hook.ifindex, hook.clone())).collect();
        hooks
    }

    fn sync_interface(&mut self, ebpf: &mut Ebpf, interface: &Interface, mode: XdpMode) -> Hook {
        let before = self.attached.get(&interface.index).cloned();
        let mut hook = Hook {
            ifindex: interface.index,
            name: interface.name.clone(),
            xdp: None,
            tc: TcHook::None,
            is_taken: false,
            problem: String::new(),
        };
        match self.sync_xdp(ebpf, interface, mode) {
            Ok((xdp, problem)) => {
                hook.xdp = Some(xdp);
                hook.problem = problem.unwrap_or_default();
            }
            Err(error) => {
                hook.is_taken = matches!(error, AttachError::Taken { .. });
                hook.problem = error.to_string();
            }
        }
        if hook.xdp.is_some() {
            match self.sync_tc(ebpf, interface) {
                Ok(tc) => hook.tc = tc,
                Err(error) => hook.problem = error.to_string(),
            }
        }
        let known = before.as_ref().map_or("", |before| before.problem.as_str());
        if !hook.problem.is_empty() && hook.problem != known {
            tracing::error!(interface = hook.name, "{}", hook.problem);
        }
        hook
    }

    /// Attaches XDP; returns the mode in use, and the problem if it is not the wanted mode.
    fn sync_xdp(
        &mut self,
        ebpf: &mut Ebpf,
        interface: &Interface,
        wanted: XdpMode,
    ) -> Result<(HookMode, Option<String>), AttachError> {
        let path = Pin::new(PinKind::LinkXdp, interface.index).path(&self.pin_dir);
        let before = self.attached.get(&interface.index).and_then(|hook| hook.xdp);
        let program = xdp(ebpf, interface)?;
        let pinned = take_over(interface, program::XDP, &path, &program_info(program.info(), interface)?, |link| {
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            drop(program.take_link(id)?);
            Ok(())
        })?;
        self.note(interface, program::XDP, pinned, before.is_some());
        let program = xdp(ebpf, interface)?;
        let mode = match (pinned, interface.xdp) {
            (Pinned::Alive, found) => found.map(|found| found.mode).or(before).unwrap_or(HookMode::Native),
            (Pinned::None | Pinned::Lost, Some(found)) => return Err(taken(interface, found)),
            (Pinned::None | Pinned::Lost, None) => {
                return attach_xdp(program, interface, wanted, &path).map(|mode| (mode, None));
            }
        };
        let keeps = match wanted {
            XdpMode::Auto => true,
            XdpMode::Native => mode == HookMode::Native,
            XdpMode::Generic => mode == HookMode::Generic,
        };
        if keeps {
            return Ok((mode, None));
        }
        let to = if wanted == XdpMode::Native { "native" } else { "generic" };
        tracing::warn!(
            interface = interface.name,
            from = mode.name(),
            to,
            "XDP mode changes: for a moment, packets bypass Weir"
        );
        remove_link(&path)?;
        attach_xdp(program, interface, wanted, &path).map(|mode| (mode, None)).or_else(|error| {
            let back = if mode == HookMode::Native { XdpMode::Native } else { XdpMode::Generic };
            attach_xdp(program, interface, back, &path).map(|mode| (mode, Some(error.to_string())))
        })
    }

    fn note(&mut self, interface: &Interface, hook: &'static str, pinned: Pinned, had: bool) {
        if pinned == Pinned::Lost || had && pinned == Pinned::None {
            self.lost += 1;
            let interface = interface.name.as_str();
            tracing::warn!(interface, hook, "a hook was lost: somebody detached it, or the interface was recreated");
        }
    }

    fn sync_tc(&mut self, ebpf: &mut Ebpf, interface: &Interface) -> Result<TcHook, AttachError> {
        for (name, direction, link, filter) in DIRECTIONS {
            match self.tc {
                TcHook::Tcx => self.sync_tcx(ebpf, interface, name, direction, Pin::new(link, interface.index))?,
                TcHook::Clsact | TcHook::None => {
                    self.sync_filter(ebpf, interface, direction, Pin::new(filter, interface.index))?;
                }
            }
        }
        Ok(self.tc)
    }

    fn sync_filter(
        &mut self,
        ebpf: &mut Ebpf,
        interface: &Interface,
        direction: TcAttachType,
        pin: Pin,
    ) -> Result<(), AttachError> {
        let name = pin.kind.hook();
        let had = self.attached.get(&interface.index).is_some_and(|hook| hook.tc != TcHook::None);
        let program = classifier(ebpf, interface, name)?;
        let pinned = attach_filter(program, &interface.name, direction, pin, &self.pin_dir)?;
        self.note(interface, name, pinned, had);
        Ok(())
    }

    fn sync_tcx(
        &mut self,
        ebpf: &mut Ebpf,
        interface: &Interface,
        name: &'static str,
        direction: TcAttachType,
        pin: Pin,
    ) -> Result<(), AttachError> {
        let failed = |error: ProgramError| failed(interface, name, error);
        let path = pin.path(&self.pin_dir);
        let had = self.attached.get(&interface.index).is_some_and(|hook| hook.tc != TcHook::None);
        let program = classifier(ebpf, interface, name)?;
        let pinned = take_over(interface, name, &path, &program_info(program.info(), interface)?, |link| {
            let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            drop(program.take_link(id)?);
            Ok(())
        })?;
        if pinned != Pinned::Alive {
            // First at ingress and last at egress: a client's packet is forwarded before another
            // program can take it, and an answer gets the VIP as its source after all other
            // programs have seen its real sender.
            let order = if direction == TcAttachType::Egress { LinkOrder::last() } else { LinkOrder::first() };
            let options = TcAttachOptions::TcxOrder(order);
            let id = program.attach_with_options(&interface.name, direction, options).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            let link = FdLink::try_from(link).map_err(|error| link_failed(interface, name, error))?;
            pin_link(link, interface, &path)?;
            tracing::info!(interface = interface.name, hook = name, "TC link attached");
        }
        self.note(interface, name, pinned, had);
        Ok(())
    }

    /// Releases the hooks on all interfaces that are not in `wanted`.
    fn release_others(&mut self, wanted: &[&Interface]) {
        let wanted: BTreeSet<u32> = wanted.iter().map(|interface| interface.index).collect();
        let pins = match Pin::list(&self.pin_dir) {
            Ok(pins) => pins,
            Err(error) => {
                tracing::error!(%error, pin_dir = %self.pin_dir.display(), "cannot list the pins");
                return;
            }
        };
        for pin in pins.iter().filter(|pin| !wanted.contains(&pin.ifindex)) {
            match pin.release(&self.pin_dir) {
                Ok(what) => tracing::info!("{what}"),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Gives the program of this process to the pinned link. The kernel does nothing if the link
/// already has that program, and refuses with ENOLINK if the link is not attached, so this also
/// tells whether the link is alive.
fn take_over(
    interface: &Interface,
    hook: &'static str,
    path: &Path,
    program: &ProgramInfo,
    update: impl FnOnce(FdLink) -> Result<(), UpdateError>,
) -> Result<Pinned, AttachError> {
    let link = match PinnedLink::from_pin(path) {
        Ok(link) => FdLink::from(link),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(Pinned::None);
        }
        Err(error) => return Err(link_failed(interface, hook, error)),
    };
    let is_other = link.info().map_err(|error| link_failed(interface, hook, error))?.program_id() != program.id();
    match update(link) {
        Ok(()) => {
            if is_other {
                tracing::info!(interface = interface.name, hook, "link taken over, program replaced");
            }
            Ok(Pinned::Alive)
        }
        Err(UpdateError::Program(ProgramError::SyscallError(error)))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            remove_link(path)?;
            Ok(Pinned::Lost)
        }
        Err(error) => Err(failed(interface, hook, error)),
    }
}

fn attach_xdp(program: &mut Xdp, interface: &Interface, wanted: XdpMode, path: &Path) -> Result<HookMode, AttachError> {
    let (link, mode) = match wanted {
        XdpMode::Generic => (create_xdp(program, interface, AttachMode::Skb)?, HookMode::Generic),
        XdpMode::Native => match create_xdp(program, interface, AttachMode::Driver) {
            Ok(link) => (link, HookMode::Native),
            Err(AttachError::Attach { interface, reason, .. }) => {
                return Err(AttachError::NoNative { interface, reason });
            }
            Err(error) => return Err(error),
        },
        XdpMode::Auto => match create_xdp(program, interface, AttachMode::Driver) {
            Ok(link) => (link, HookMode::Native),
            Err(AttachError::Attach { reason, .. }) => {
                tracing::warn!(interface = interface.name, reason, "no native XDP, falling back to generic");
                (create_xdp(program, interface, AttachMode::Skb)?, HookMode::Generic)
            }
            Err(error) => return Err(error),
        },
    };
    pin_link(link, interface, path)?;
    tracing::info!(interface = interface.name, mode = mode.name(), "XDP link attached");
    Ok(mode)
}

/// Attaches by a link, never by netlink: aya falls back to netlink where links fail, and that
/// attachment ends with the process.
fn create_xdp(program: &mut Xdp, interface: &Interface, mode: AttachMode) -> Result<FdLink, AttachError> {
    let failed = |error: ProgramError| failed(interface, program::XDP, error);
    let id = program.attach_to_if_index(interface.index, mode).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    FdLink::try_from(link)
        .map_err(|_| AttachError::NoLinks { interface: interface.name.clone(), kernel: kernel_version() })
}

fn pin_link(link: FdLink, interface: &Interface, path: &Path) -> Result<(), AttachError> {
    match link.pin(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(AttachError::Pin { interface: interface.name.clone(), path: path.to_owned(), source }),
    }
}

fn remove_link(path: &Path) -> Result<(), AttachError> {
    pins::remove_link(path).map_err(|source| AttachError::Unpin { path: path.to_owned(), source })
}

fn xdp<'a>(ebpf: &'a mut Ebpf, interface: &Interface) -> Result<&'a mut Xdp, AttachError> {
    let program = ebpf.program_mut(program::XDP).ok_or(ProgramError::NotLoaded);
    program.and_then(TryInto::try_into).map_err(|error| failed(interface, program::XDP, error))
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    interface: &Interface,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, AttachError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
    program.and_then(TryInto::try_into).map_err(|error| failed(interface, name, error))
}

fn program_info(info: Result<ProgramInfo, ProgramError>, interface: &Interface) -> Result<ProgramInfo, AttachError> {
    info.map_err(|error| failed(interface, "the program", error))
}

pub(crate) fn taken(interface: &Interface, found: XdpHook) -> AttachError {
    let program = match programs::name_by_id(found.program) {
        Name::Known(name) => format!("program {name}"),
        Name::None => "a program without a name".to_owned(),
        Name::Forbidden => "a program whose name only CAP_SYS_ADMIN may ask".to_owned(),
    };
    AttachError::Taken { interface: interface.name.clone(), program, id: found.program, mode: found.mode.name() }
}

fn failed(interface: &Interface, hook: &'static str, error: impl std::error::Error) -> AttachError {
    AttachError::Attach { interface: interface.name.clone(), hook, reason: causes(&error) }
}

fn link_failed(interface: &Interface, hook: &'static str, error: LinkError) -> AttachError {
    failed(interface, hook, error)
}

fn kernel_version() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_else(|_| "an unknown kernel".to_owned())
}
