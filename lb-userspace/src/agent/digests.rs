//! Views of whole rings; made on request, and cached until a slot changes.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::flow::Family;

use crate::{
    balance::digest::digest,
    dataplane::{
        image::{Image, Slots},
        plan::{Wanted, address},
    },
};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingView {
    pub digest: String,
    pub in_transition: u32,
    /// Number of slots whose owners agree, but which have or may have exceptions.
    pub tracked: u32,
}

#[derive(Debug, Default)]
pub struct Digests(Option<(BTreeMap<SocketAddr, RingView>, BTreeMap<u32, f64>)>);

impl Digests {
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// The view of each VIP's ring, and each backend's share of its family's slots, by backend
    /// index.
    pub fn of(
        &mut self,
        wanted: &Wanted,
        image: &Image,
        slots: &dyn Slots,
    ) -> &(BTreeMap<SocketAddr, RingView>, BTreeMap<u32, f64>) {
        self.0.get_or_insert_with(|| make(wanted, image, slots))
    }
}

fn make(wanted: &Wanted, image: &Image, slots: &dyn Slots) -> (BTreeMap<SocketAddr, RingView>, BTreeMap<u32, f64>) {
    let addresses: HashMap<u32, SocketAddr> =
        image.backends.iter().filter_map(|(index, backend)| Some((*index, address(backend)?))).collect();
    let mut views = BTreeMap::new();
    let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
    for service in &wanted.services {
        for (family, ring) in &service.rings {
            let of_family: Vec<SocketAddr> = service
                .vips
                .iter()
                .filter(|vip: &&IpAddr| Family::of(vip) == *family)
                .map(|vip| SocketAddr::new(*vip, service.port))
                .collect();
            let entry = of_family.first().and_then(|vip| image.services.get(vip));
            let Some(entry) = entry else { continue };
            let slots = slots.range(entry.ring_offset, entry.ring_len);
            let owners = slots.iter().map(|slot| addresses.get(&slot.current()).copied());
            let view = RingView {
                digest: digest(ring.declared(), *family, owners),
                in_transition: slots.iter().filter(|slot| slot.in_transition()).count() as u32,
                tracked: slots.iter().filter(|slot| !slot.in_transition() && !slot.is_settled()).count() as u32,
            };
            for vip in of_family {
                views.insert(vip, view.clone());
            }
            for slot in slots.iter().filter(|slot| slot.current() != 0) {
                *shares.entry(slot.current()).or_default() += 1.0 / slots.len() as f64;
            }
        }
    }
    (views, shares)
}
