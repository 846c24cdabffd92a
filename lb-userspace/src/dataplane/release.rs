//! Releases a hook: detaches it and removes its pin.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{TcAttachType, tc};
use nix::net::if_::if_indextoname;

use super::{
    clsact,
    pins::{Pin, PinKind},
    raw::objects::Link,
};

/// A pin that could not be released; its link, filter or qdisc may still be in place.
#[derive(Debug, thiserror::Error)]
#[error("cannot release the pin {}: {source}", .path.display())]
pub struct ReleaseError {
    pub path: PathBuf,
    pub source: io::Error,
}

impl Pin {
    /// Detaches what the pin stands for and removes the pin; returns a description of what was
    /// done.
    pub fn release(self, pin_dir: &Path) -> Result<String, ReleaseError> {
        let path = self.path(pin_dir);
        let interface = if_indextoname(self.ifindex)
            .ok()
            .map(|name| name.to_string_lossy().into_owned())
            // The name is empty for an interface that is being removed.
            .filter(|name| !name.is_empty());
        let failed = |source| ReleaseError { path: path.clone(), source };
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

    /// Whether the interface still has filters of Weir's.
    fn has_filters(self, pin_dir: &Path) -> bool {
        let filters = [PinKind::FilterIngress, PinKind::FilterEgress];
        filters.iter().any(|kind| Pin::new(*kind, self.ifindex).path(pin_dir).exists())
    }

    fn detach_filter(self, interface: &str) -> io::Result<()> {
        let direction = if self.kind == PinKind::FilterEgress { TcAttachType::Egress } else { TcAttachType::Ingress };
        match tc::qdisc_detach_program(interface, direction, self.kind.hook()) {
            Ok(()) => Ok(()),
            Err(tc::TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::other(format!("cannot detach the TC filter on {interface}: {error}"))),
        }
    }
}
