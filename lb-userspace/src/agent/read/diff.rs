//! The differences between the maps and the desired state, in readable form.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{backend::Backend, limits::map, service::Service, slot::Slot};

use crate::{
    agent::writer::map_of,
    dataplane::{
        image::{Image, Write},
        plan::{Plan, address},
    },
    view::types::DiffView,
};

/// One line for each write that is needed, but only one line for all slots of a ring.
pub fn diff(programmed: &Image, plan: &Plan) -> Vec<DiffView> {
    let mut views = Vec::new();
    let rings: BTreeSet<u32> = plan.target.ranges().into_iter().map(|(offset, _)| offset).collect();
    let mut slots: BTreeMap<u32, (usize, String, String)> = BTreeMap::new();
    for write in &plan.writes {
        let view = |key: String, desired: String, programmed: String| DiffView {
            map: map_of(write).to_owned(),
            key,
            desired,
            programmed,
        };
        match write {
            Write::GracePeriod
            | Write::ForgetSyns { .. }
            | Write::ClearBackendStats { .. }
            | Write::ClearServiceStats { .. } => {}
            Write::Slot { at, from, to, .. } => {
                let ring = rings.range(..=at).next_back().copied().unwrap_or(0);
                let name = |slot: &Slot, image: &Image| owner(slot.current(), image);
                let entry = slots.entry(ring).or_insert_with(|| (0, name(to, &plan.target), name(from, programmed)));
                entry.0 += 1;
            }
            Write::Ring { offset, slots } => {
                views.push(view(format!("slots {offset}.."), format!("{} slots of a new ring", slots.len()), absent()));
            }
            Write::Settings(settings) => {
                let before = programmed.settings.map_or_else(absent, |before| format!("{before:?}"));
                views.push(view("settings".to_owned(), format!("{settings:?}"), before));
            }
            Write::SnatAddress { index, address } => {
                let before = programmed.snat_addresses.get(*index as usize).copied().flatten();
                let text =
                    |address: Option<std::net::IpAddr>| address.map_or_else(absent, |address| address.to_string());
                views.push(view(index.to_string(), text(*address), text(before)));
            }
            Write::Backend { index, backend } => {
                let before = programmed.backends.get(index).map_or_else(absent, backend_text);
                views.push(view(index.to_string(), backend_text(backend), before));
            }
            Write::Service { vip, service } => {
                let before = programmed.services.get(vip).map_or_else(absent, service_text);
                views.push(view(vip.to_string(), service_text(service), before));
            }
            Write::RemoveService { vip } => {
                let before = programmed.services.get(vip).map_or_else(absent, service_text);
                views.push(view(vip.to_string(), absent(), before));
            }
            Write::Address { address, bits } => {
                let before = programmed.addresses.get(address).map_or_else(absent, |bits| format!("{bits:#06b}"));
                views.push(view(address.to_string(), format!("{bits:#06b}"), before));
            }
            Write::RemoveAddress { address } => {
                let before = programmed.addresses.get(address).map_or_else(absent, |bits| format!("{bits:#06b}"));
                views.push(view(address.to_string(), absent(), before));
            }
            Write::Peer { prefix } => views.push(view(prefix.to_string(), "peer".to_owned(), absent())),
            Write::RemovePeer { prefix } => views.push(view(prefix.to_string(), absent(), "peer".to_owned())),
            Write::WayOut { ifindex, .. } => views.push(view(ifindex.to_string(), "redirect".to_owned(), absent())),
            Write::RemoveWayOut { ifindex } => views.push(view(ifindex.to_string(), absent(), "redirect".to_owned())),
        }
    }
    for (ring, (count, desired, programmed)) in slots {
        views.push(DiffView {
            map: map::RINGS.to_owned(),
            key: format!("{count} slots from {ring} on"),
            desired: format!("first: {desired}"),
            programmed: format!("first: {programmed}"),
        });
    }
    views
}

fn absent() -> String {
    "absent".to_owned()
}

fn owner(index: u32, image: &Image) -> String {
    if index == 0 {
        return "reject".to_owned();
    }
    let address = image.backends.get(&index).and_then(address);
    address.map_or_else(|| format!("index {index}, nobody"), |address| address.to_string())
}

fn backend_text(backend: &Backend) -> String {
    let Some(address) = address(backend) else { return "free".to_owned() };
    format!(
        "{address} service {} way {} flags {:#b} admin {} health {} generation {} snat {}+{}",
        backend.service,
        backend.way,
        backend.flags,
        backend.admin,
        backend.health,
        backend.generation,
        backend.snat_first,
        backend.snat_count
    )
}

fn service_text(service: &Service) -> String {
    format!(
        "id {} ring {}+{} counters {} flags {:#b} mode {}{}",
        service.id,
        service.ring_offset,
        service.ring_len,
        service.stats,
        service.flags,
        service.mode,
        if service.draining_since_ns > 0 { ", lets flows end" } else { "" }
    )
}
