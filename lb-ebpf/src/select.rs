//! From a flow to the backend that its slot names.

use lb_common::{
    backend::Backend,
    flow::Addr,
    hash::slot_of,
    service::Service,
    settings::Settings,
    slot::{REJECT, Slot},
    trace::rule,
};

use crate::{maps, work::Work};

/// A backend that may get new flows, and its index.
#[derive(Clone, Copy)]
pub struct Owner {
    pub index: u32,
    pub backend: &'static Backend,
}

/// The slot that the flow in `work` hashes to; `None` if the service has no ring.
#[inline(always)]
pub fn slot<A: Addr>(settings: &Settings, service: &Service, work: &mut Work<A>) -> Option<Slot> {
    work.hash = A::hash_flow(&settings.hash_key, &work.from);
    let hash = if service.flags & Service::FLAG_CLIENT_AFFINITY != 0 {
        A::hash_client(&settings.hash_key, &work.from.src)
    } else {
        work.hash
    };
    work.slot = service.ring_offset.wrapping_add(slot_of(hash, service.ring_len));
    let slot = maps::slot(work.slot)?;
    work.word = slot.0;
    work.rule = rule::RING;
    Some(slot)
}

/// The owner of that slot; `None` if the slot rejects.
#[inline(always)]
pub fn owner<A: Addr>(settings: &Settings, service: &Service, work: &mut Work<A>) -> Option<Owner> {
    let index = slot(settings, service, work)?.current();
    if index == REJECT {
        return None;
    }
    let backend = maps::backend(index)?;
    backend.is_serving().then_some(Owner { index, backend })
}

/// Whether flows of the backend that had this generation of `index` may go on.
#[inline(always)]
pub fn is_serving(index: u32, generation: u32) -> Option<&'static Backend> {
    maps::backend(index).filter(|backend| backend.is_serving() && backend.generation == generation)
}
