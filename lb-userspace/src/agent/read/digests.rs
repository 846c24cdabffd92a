//! Views of whole rings. Slots are read at each request. The digest and the shares depend only on
//! the owners of the slots, so they are cached until an owner changes.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    flow::Family,
    slot::{REJECT, Slot},
};

use crate::{
    balance::{Ring, digest::digest},
    dataplane::{
        image::Slots,
        plan::{WantedService, address},
        programmed::{Part, Programmed},
    },
};

/// The facts about a ring that documents show.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RingView {
    pub digest: String,
    pub in_transition: u32,
    /// Number of slots whose owners agree, but which have or may have exceptions.
    pub tracked: u32,
    /// Each owner's share of the slots, by the owner's index in `BACKENDS`.
    pub shares: BTreeMap<u32, f64>,
}

/// The view of each ring, by service id and family.
pub type RingViews = BTreeMap<(u32, Family), Arc<RingView>>;

/// The cached rings, by service id and family.
#[derive(Default)]
pub struct Digests(BTreeMap<(u32, Family), Kept>);

struct Kept {
    ring: Arc<Ring>,
    /// A hash of the owners of all slots.
    owners: u64,
    view: Arc<RingView>,
}

impl Digests {
    /// Drops the cached rings of services that have no part in `programmed`.
    pub fn forget_gone(&mut self, programmed: &Programmed) {
        self.0.retain(|(id, _), _| programmed.part(*id).is_some());
    }

    /// Adds the views of the service's rings to `views`.
    pub fn add_views(
        &mut self,
        service: &WantedService,
        programmed: &Programmed,
        slots: &dyn Slots,
        views: &mut RingViews,
    ) {
        let Some(part) = programmed.named(&service.name) else { return };
        for (family, ring) in &service.rings {
            let vip = service.vips.iter().find(|vip| Family::of(vip) == *family);
            let entry = vip.and_then(|vip| part.services.get(&SocketAddr::new(*vip, service.port)));
            let Some(entry) = entry else { continue };
            let slots = slots.range(entry.ring_offset, entry.ring_len);
            let key = (part.id, *family);
            let kept = Kept::of(*family, ring, part, &slots, self.0.remove(&key));
            views.insert(key, kept.view.clone());
            self.0.insert(key, kept);
        }
    }
}

impl Kept {
    fn of(family: Family, ring: &Arc<Ring>, part: &Part, slots: &[Slot], before: Option<Self>) -> Self {
        let (mut owners, mut in_transition, mut tracked) = (0_u64, 0, 0);
        for slot in slots {
            owners = (owners.rotate_left(5) ^ u64::from(slot.current())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            in_transition += u32::from(slot.in_transition());
            tracked += u32::from(!slot.in_transition() && !slot.is_settled());
        }
        let same = before.filter(|kept| Arc::ptr_eq(&kept.ring, ring) && kept.owners == owners);
        let view = match same {
            Some(Kept { view, .. }) if (view.in_transition, view.tracked) == (in_transition, tracked) => view,
            Some(Kept { view, .. }) => Arc::new(RingView { in_transition, tracked, ..(*view).clone() }),
            None => Arc::new(RingView { in_transition, tracked, ..whole(family, ring, part, slots) }),
        };
        Self { ring: ring.clone(), owners, view }
    }
}

fn whole(family: Family, ring: &Ring, part: &Part, slots: &[Slot]) -> RingView {
    let addresses: HashMap<u32, SocketAddr> =
        part.backends.iter().filter_map(|(index, backend)| Some((*index, address(backend)?))).collect();
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for slot in slots.iter().filter(|slot| slot.current() != REJECT) {
        *counts.entry(slot.current()).or_default() += 1;
    }
    let share = |(index, count): (u32, u32)| (index, f64::from(count) / slots.len() as f64);
    RingView {
        digest: digest(ring.declared(), family, slots.iter().map(|slot| addresses.get(&slot.current()).copied())),
        shares: counts.into_iter().map(share).collect(),
        ..RingView::default()
    }
}
