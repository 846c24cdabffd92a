//! What is pinned for each interface, and how it is given up.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramInfo, TcAttachType,
    links::{FdLink, PinnedLink},
    tc,
};
use lb_common::limits::program;
use nix::net::if_::if_indextoname;

use super::{
    clsact,
    load::{self, LoadError},
    migrate::{
        MigrateError,
        leftovers::{self, map_pins},
        record::LAYOUTS,
    },
    programs,
    raw::objects::Link,
};

/// A file of the pin directory that stands for something at an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pin {
    pub kind: PinKind,
    pub ifindex: u32,
}

/// In the order in which they are released.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinKind {
    LinkXdp,
    LinkIngress,
    LinkEgress,
    /// A program, pinned as the mark of a filter of clsact: filters can't be pinned.
    FilterIngress,
    FilterEgress,
    /// An array without use, pinned as the mark of a clsact qdisc that Weir has added.
    Clsact,
}

impl PinKind {
    const ALL: [PinKind; 6] = [
        PinKind::LinkXdp,
        PinKind::LinkIngress,
        PinKind::LinkEgress,
        PinKind::FilterIngress,
        PinKind::FilterEgress,
        PinKind::Clsact,
    ];

    const fn prefix(self) -> &'static str {
        match self {
            PinKind::LinkXdp => "link-xdp-",
            PinKind::LinkIngress => "link-ingress-",
            PinKind::LinkEgress => "link-egress-",
            PinKind::FilterIngress => "filter-ingress-",
            PinKind::FilterEgress => "filter-egress-",
            PinKind::Clsact => "clsact-",
        }
    }

    /// Whether a link is pinned; otherwise a program.
    pub const fn is_link(self) -> bool {
        matches!(self, PinKind::LinkXdp | PinKind::LinkIngress | PinKind::LinkEgress)
    }

    /// Whether a program of ours runs there.
    pub const fn is_hook(self) -> bool {
        !matches!(self, PinKind::Clsact)
    }

    /// The program that belongs there.
    pub const fn hook(self) -> &'static str {
        match self {
            PinKind::LinkXdp => program::XDP,
            PinKind::LinkIngress | PinKind::FilterIngress | PinKind::Clsact => program::INGRESS,
            PinKind::LinkEgress | PinKind::FilterEgress => program::EGRESS,
        }
    }
}

impl Pin {
    pub const fn new(kind: PinKind, ifindex: u32) -> Self {
        Self { kind, ifindex }
    }

    pub fn path(self, pin_dir: &Path) -> PathBuf {
        pin_dir.join(format!("{}{}", self.kind.prefix(), self.ifindex))
    }

    /// What is pinned, in the order in which it is to be released. An error if there is no such
    /// directory.
    pub fn list(pin_dir: &Path) -> io::Result<Vec<Pin>> {
        let mut pins: Vec<Pin> = names(pin_dir)?.iter().filter_map(|name| Pin::parse(name)).collect();
        pins.sort_unstable();
        Ok(pins)
    }

    /// Whether a pin of an interface has this name.
    pub fn is_name(name: &str) -> bool {
        Pin::parse(name).is_some()
    }

    /// The id of the program that runs there.
    pub fn program(self, pin_dir: &Path) -> io::Result<u32> {
        let path = self.path(pin_dir);
        if !self.kind.is_link() {
            return Ok(ProgramInfo::from_pin(path).map_err(io::Error::other)?.id());
        }
        let link = FdLink::from(PinnedLink::from_pin(path).map_err(io::Error::other)?);
        Ok(link.info().map_err(io::Error::other)?.program_id())
    }

    fn parse(name: &str) -> Option<Pin> {
        PinKind::ALL.into_iter().find_map(|kind| {
            let ifindex = name.strip_prefix(kind.prefix())?.parse().ok()?;
            Some(Pin { kind, ifindex })
        })
    }

    /// Detaches it and removes the pin; says what was done.
    pub fn release(self, pin_dir: &Path) -> Result<String, LoadError> {
        let path = self.path(pin_dir);
        let interface = if_indextoname(self.ifindex)
            .ok()
            .map(|name| name.to_string_lossy().into_owned())
            // So it is for an interface that is on its way out.
            .filter(|name| !name.is_empty());
        let failed = |source| LoadError::PinDir { path: path.clone(), source };
        let done = match self.kind {
            PinKind::LinkXdp | PinKind::LinkIngress | PinKind::LinkEgress => {
                Link::open(&path).and_then(|link| link.detach()).map_err(failed)?;
                format!("detached {}", self.kind.hook())
            }
            PinKind::FilterIngress | PinKind::FilterEgress => {
                if let Some(interface) = &interface {
                    self.detach_filter(interface).map_err(failed)?;
                }
                format!("detached {}", self.kind.hook())
            }
            PinKind::Clsact if interface.is_none() => "forgot the clsact qdisc".to_owned(),
            PinKind::Clsact if self.has_filters(pin_dir) => {
                return Err(failed(io::Error::other("Weir's own filters are still in the qdisc")));
            }
            PinKind::Clsact => match clsact::remove_if_empty(self.ifindex).map_err(failed)? {
                true => "removed the clsact qdisc".to_owned(),
                false => "left the clsact qdisc, in which others have filters,".to_owned(),
            },
        };
        fs::remove_file(&path).map_err(failed)?;
        let from = interface.unwrap_or_else(|| format!("interface {} (gone, or of another namespace)", self.ifindex));
        Ok(format!("{done} from {from}"))
    }

    /// Whether filters of Weir's are left on its interface.
    fn has_filters(self, pin_dir: &Path) -> bool {
        let filters = [PinKind::FilterIngress, PinKind::FilterEgress];
        filters.iter().any(|kind| Pin::new(*kind, self.ifindex).path(pin_dir).exists())
    }

    fn detach_filter(self, interface: &str) -> io::Result<()> {
        let direction = if self.kind == PinKind::FilterEgress { TcAttachType::Egress } else { TcAttachType::Ingress };
        match tc::qdisc_detach_program(interface, direction, self.kind.hook()) {
            Ok(()) => Ok(()),
            Err(tc::TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::other(format!("the TC filter on {interface} does not go: {error}"))),
        }
    }
}

/// Detaches a link, whoever else holds it open, and removes its pin.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    Link::open(path)?.detach()?;
    fs::remove_file(path)
}

/// Detaches every hook and removes every pin; says what was done, nothing if there was nothing.
/// Connections through Weir end.
pub fn cleanup(pin_dir: &Path) -> Result<Vec<String>, LoadError> {
    let failed = |source| LoadError::PinDir { path: pin_dir.to_owned(), source };
    if !fs::exists(pin_dir).map_err(failed)? {
        return Ok(Vec::new());
    }
    if !load::is_on_bpffs(pin_dir) {
        return Err(LoadError::NoBpffs(pin_dir.to_owned()));
    }
    let _lock = load::lock(pin_dir)?;
    let mut done = Vec::new();
    leftovers::clear_marks(pin_dir).map_err(MigrateError::from)?;
    let mut refused = None;
    for pin in Pin::list(pin_dir).map_err(failed)? {
        match pin.release(pin_dir) {
            Ok(what) => done.push(what),
            Err(error) => {
                tracing::error!("{error}");
                refused = refused.or(Some(error));
            }
        }
    }
    // The maps stay as long as a hook may use them.
    if let Some(error) = refused {
        return Err(error);
    }
    let mut maps = map_pins(pin_dir).map_err(MigrateError::from)?;
    // Last, so that a start after an interruption still knows what the others hold.
    maps.sort_by_key(|name| name == LAYOUTS);
    for name in maps {
        leftovers::remove(pin_dir.join(&name)).map_err(MigrateError::from)?;
        done.push(format!("removed map {name}"));
    }
    for path in programs::pins(pin_dir) {
        leftovers::remove(path).map_err(MigrateError::from)?;
    }
    let left = names(pin_dir).map_err(failed)?;
    if left.is_empty() {
        fs::remove_dir(pin_dir).map_err(failed)?;
        done.push(format!("removed {}", pin_dir.display()));
    } else {
        done.push(format!("left {}, which has files that are not Weir's: {}", pin_dir.display(), left.join(", ")));
    }
    Ok(done)
}

pub(super) fn names(pin_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(pin_dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_found_again_under_the_name_they_were_given() {
        for kind in PinKind::ALL {
            let pin = Pin::new(kind, 17);
            let path = pin.path(Path::new("/pins"));
            assert_eq!(Pin::parse(path.file_name().unwrap().to_str().unwrap()), Some(pin));
        }
        assert_eq!(Pin::parse("link-xdp-eth0"), None);
        assert_eq!(Pin::parse("RINGS"), None);
    }
}
