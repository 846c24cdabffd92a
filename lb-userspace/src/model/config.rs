//! The whole desired state.

use super::{
    node::NodeSettings,
    service::{Backend, Service},
};
use crate::state::{BackendId, ServiceName};

/// The desired state from a source: the settings of the node, and its services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub node: NodeSettings,
    /// Sorted by name. Names are unique, and so are pairs of VIP and port.
    pub services: Vec<Service>,
}

impl Config {
    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        let at = self.services.binary_search_by(|service| service.name.cmp(name)).ok()?;
        self.services.get(at)
    }

    /// The declaration of a backend; `None` if it is not declared, or not any more.
    pub fn backend(&self, id: &BackendId) -> Option<&Backend> {
        let backends = &self.service(&id.service)?.backends;
        backends.get(backends.binary_search_by_key(&id.address, |backend| backend.address).ok()?)
    }
}
