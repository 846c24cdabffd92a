//! The pins of each interface.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramInfo,
    links::{FdLink, PinnedLink},
};
use lb_common::limits::program;

use super::{bpffs::names, raw::objects::Link};

/// A file in the pin directory that belongs to an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pin {
    pub kind: PinKind,
    pub ifindex: u32,
}

/// The kinds, in the order in which pins are released.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinKind {
    LinkXdp,
    LinkIngress,
    LinkEgress,
    /// A program, pinned to mark a clsact filter as ours: filters themselves can't be pinned.
    FilterIngress,
    FilterEgress,
    /// An unused array, pinned to mark a clsact qdisc that Weir has added.
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

    /// Whether the pin is a link.
    pub const fn is_link(self) -> bool {
        matches!(self, PinKind::LinkXdp | PinKind::LinkIngress | PinKind::LinkEgress)
    }

    /// Whether the pin stands for a hook on which a program of ours runs.
    pub const fn is_hook(self) -> bool {
        !matches!(self, PinKind::Clsact)
    }

    /// The program that belongs to this hook.
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

    /// The pins in the directory, in the order in which they are to be released. An error if there
    /// is no such directory.
    pub fn list(pin_dir: &Path) -> io::Result<Vec<Pin>> {
        let mut pins: Vec<Pin> = names(pin_dir)?.iter().filter_map(|name| Pin::parse(name)).collect();
        pins.sort_unstable();
        Ok(pins)
    }

    /// Whether a pin of an interface has this name.
    pub fn is_name(name: &str) -> bool {
        Pin::parse(name).is_some()
    }

    /// The id of the program that runs on this hook.
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
}

/// Detaches a link, even if other processes hold it open, and removes its pin.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    Link::open(path)?.detach()?;
    fs::remove_file(path)
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
