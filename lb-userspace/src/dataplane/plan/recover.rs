//! What a restarted agent recovers from the maps.

use std::collections::BTreeMap;

use lb_common::backend::{self, Backend};

use super::{backends::is_same, entry::address, ids, services::named, wanted::Wanted};
use crate::dataplane::image::{Image, Slots};
use crate::state::{BackendId, Health};

/// What the maps hold about the wanted backends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Health, and its start in nanoseconds since 1970 (0 is never).
    pub health: BTreeMap<BackendId, (Health, u64)>,
}

/// Finds the wanted backends in the maps. Drains need no recovery: each plan reads them from the
/// image.
///
/// A backend without probes that owned slots was assumed up. It still counts as up if probes have
/// been configured meanwhile; otherwise its service would reject until the first probe is answered.
pub fn recover(wanted: &Wanted, programmed: &Image, slots: &dyn Slots) -> Recovered {
    let ids = ids::assign(&wanted.services, programmed, wanted.holds);
    let mut entries: BTreeMap<u32, Vec<(u32, &Backend)>> = BTreeMap::new();
    for (index, backend) in programmed.backends.iter().filter(|(_, backend)| address(backend).is_some()) {
        entries.entry(backend.service).or_default().push((*index, backend));
    }
    let owners = named(programmed.ranges(), slots, |slot| [slot.current()]);
    let mut recovered = Recovered::default();
    for service in &wanted.services {
        let of_service = ids.get(&service.name).and_then(|id| entries.get(id));
        for wanted in &service.backends {
            let found = of_service
                .into_iter()
                .flatten()
                .find(|(_, backend)| is_same(backend, service, wanted) && !is_leaving(backend));
            let Some((index, backend)) = found else { continue };
            let health = match backend.health {
                backend::HEALTH_UP => Health::Up,
                backend::HEALTH_DOWN => Health::Down,
                backend::HEALTH_DEAD => Health::Dead,
                _ if owners.contains(index) => Health::Up,
                _ => Health::Unknown,
            };
            let id = BackendId { service: service.name.clone(), address: wanted.address };
            recovered.health.insert(id, (health, backend.health_since_unix_ns));
        }
    }
    recovered
}

const fn is_leaving(backend: &Backend) -> bool {
    backend.admin == backend::ADMIN_REMOVED || backend.admin == backend::ADMIN_GONE
}
