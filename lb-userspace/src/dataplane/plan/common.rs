//! What the maps hold for all services together: the settings, and the addresses with their bits.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{backend::Backend, service, settings};

use super::{entry::address, flow_use::FlowUse, planned::Misfit, wanted::Wanted};
use crate::{
    dataplane::image::Image,
    model::{Limits, need::Need},
};

pub fn settings(wanted: &Wanted, target: &Image) -> settings::Settings {
    let mut flags = wanted.settings.flags | settings_flags(target);
    if !wanted.peers.is_empty() {
        flags |= settings::Settings::FLAG_TUNNEL;
    }
    settings::Settings { flags, layout: settings::LAYOUT, ..wanted.settings }
}

/// The flags of the settings that the backends of `target` need.
pub fn settings_flags(target: &Image) -> u32 {
    let keeps_source = target.backends.values().any(Backend::keeps_source);
    if keeps_source { settings::Settings::FLAG_KEEP_SOURCE } else { 0 }
}

/// The SNAT addresses, and the addresses of backends that keep the client's address, with their
/// bits.
pub fn address_bits(target: &Image) -> BTreeMap<IpAddr, u32> {
    let mut addresses: BTreeMap<IpAddr, u32> = BTreeMap::new();
    let mut set = |address: IpAddr, bits: u32| *addresses.entry(address).or_default() |= bits;
    for address in target.snat_addresses.iter().flatten() {
        set(*address, service::address::SNAT);
    }
    for backend in target.backends.values().filter(|backend| backend.keeps_source()) {
        if let Some(address) = address(backend) {
            set(address.ip(), service::address::KEEP_SOURCE);
        }
    }
    addresses
}

pub fn addresses(wanted: &Wanted, programmed: &Image, in_use: &FlowUse, target: &Image) -> BTreeMap<IpAddr, u32> {
    let mut addresses = address_bits(target);
    let mut set = |address: IpAddr, bits: u32| *addresses.entry(address).or_default() |= bits;
    for vip in target.services.keys() {
        set(vip.ip(), service::address::VIP);
    }
    // Answers of backends may still arrive at addresses that SNAT no longer uses for new flows.
    for (address, bits) in &programmed.addresses {
        let may_be_used = !in_use.is_after(wanted.since_ns) || in_use.snat.contains(address);
        if bits & service::address::SNAT != 0 && may_be_used {
            set(*address, service::address::SNAT);
        }
    }
    if !wanted.peers.is_empty() {
        for address in &wanted.node_addresses {
            *addresses.entry(*address).or_default() |= service::address::TUNNEL;
        }
    }
    for (address, bits) in &mut addresses {
        if wanted.node_addresses.contains(address) {
            *bits |= service::address::NODE;
        }
    }
    addresses
}

pub fn check_addresses(limits: &Limits, target: &Image) -> Result<(), Misfit> {
    let mut need = Need::default();
    need.add_addresses(target.addresses.keys().copied());
    need.exceeds(limits).first().map_or(Ok(()), |exceeded| Err(Misfit::Addresses(*exceeded)))
}
