//! What is pinned for each interface, and how it is given up.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    TcAttachType,
    links::{FdLink, PinnedLink},
    loaded_links, tc,
};
use lb_common::limits::program;
use nix::net::if_::if_indextoname;

use super::{
    load::{self, LoadError},
    migrate::{MigrateError, leftovers::map_pins},
};

const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// A file of the pin directory that stands for a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pin {
    pub kind: PinKind,
    pub ifindex: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinKind {
    LinkXdp,
    LinkIngress,
    LinkEgress,
    /// A program, pinned as the mark of a filter of clsact: filters can't be pinned.
    FilterIngress,
    FilterEgress,
}

impl PinKind {
    const ALL: [PinKind; 5] =
        [PinKind::LinkXdp, PinKind::LinkIngress, PinKind::LinkEgress, PinKind::FilterIngress, PinKind::FilterEgress];

    const fn prefix(self) -> &'static str {
        match self {
            PinKind::LinkXdp => "link-xdp-",
            PinKind::LinkIngress => "link-ingress-",
            PinKind::LinkEgress => "link-egress-",
            PinKind::FilterIngress => "filter-ingress-",
            PinKind::FilterEgress => "filter-egress-",
        }
    }

    /// Whether a link is pinned; otherwise a program.
    pub const fn is_link(self) -> bool {
        matches!(self, PinKind::LinkXdp | PinKind::LinkIngress | PinKind::LinkEgress)
    }

    /// The program that belongs there.
    pub const fn hook(self) -> &'static str {
        match self {
            PinKind::LinkXdp => program::XDP,
            PinKind::LinkIngress | PinKind::FilterIngress => program::INGRESS,
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

    /// The hooks that are pinned; none if there is no such directory.
    pub fn list(pin_dir: &Path) -> io::Result<Vec<Pin>> {
        Ok(names(pin_dir)?.iter().filter_map(|name| Pin::parse(name)).collect())
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
        let direction = match self.kind {
            PinKind::FilterIngress => Some(TcAttachType::Ingress),
            PinKind::FilterEgress => Some(TcAttachType::Egress),
            PinKind::LinkXdp | PinKind::LinkIngress | PinKind::LinkEgress => None,
        };
        if let (Some(direction), Some(interface)) = (direction, &interface) {
            match tc::qdisc_detach_program(interface, direction, self.kind.hook()) {
                Ok(()) => {}
                Err(tc::TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let source = io::Error::other(format!("the TC filter on {interface} does not go: {error}"));
                    return Err(LoadError::PinDir { path, source });
                }
            }
        }
        let removed = if direction.is_none() { remove_link(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| LoadError::PinDir { path, source })?;
        let from = interface.unwrap_or_else(|| format!("interface {} (gone, or of another namespace)", self.ifindex));
        Ok(format!("detached {} from {from}", self.kind.hook()))
    }
}

/// Removes a link's pin and waits until it is detached: the kernel does that a moment after the last reference is gone.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    let link = PinnedLink::from_pin(path).map_err(io::Error::other)?;
    let link = FdLink::from(link);
    let id = link.info().map_err(io::Error::other)?.id();
    fs::remove_file(path)?;
    drop(link);
    let begun = Instant::now();
    while loaded_links().filter_map(Result::ok).any(|link| link.id() == id) {
        if begun.elapsed() > DETACH_TIMEOUT {
            return Err(io::Error::other(format!("link {id} stays attached: another process holds it")));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Detaches every hook and removes every pin; says what was done, nothing if there was nothing. Connections through Weir end.
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
    for pin in Pin::list(pin_dir).map_err(failed)? {
        done.push(pin.release(pin_dir)?);
    }
    for name in map_pins(pin_dir).map_err(MigrateError::from)? {
        fs::remove_file(pin_dir.join(&name))
            .map_err(|source| LoadError::PinDir { path: pin_dir.join(&name), source })?;
        done.push(format!("removed map {name}"));
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
