//! Plans only the services that have changed; all others stay as they are. Most changes need no
//! more, and the cost does not grow with the number of services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{service::address::NODE, settings::Settings};

use super::{
    backends,
    common::{address_bits, settings_flags},
    flow_use::FlowUse,
    planned::{Plan, PlanError},
    services::{self, Inputs, Memo, Room},
    snat::Blocks,
    wanted::{Wanted, WantedService},
    writes,
};
use crate::dataplane::image::{Image, Slots};
use crate::{
    dataplane::{arena::Numbers, programmed::Programmed},
    state::ServiceName,
};

/// Plans `changed`, which are services of `wanted`. `None`: only a plan of all services will do,
/// because a service is new, has other VIPs, or needs a new range for its ring.
///
/// The plan's target holds these services' entries, the addresses that they need, and everything
/// that is common to all services; addresses and settings that are no longer needed stay until the
/// next plan of all services.
pub fn plan_part(
    wanted: &Wanted,
    changed: &[Arc<WantedService>],
    programmed: &Programmed,
    slots: &dyn Slots,
    in_use: &FlowUse,
    now_ns: u64,
    memo: &mut Memo,
) -> Result<Option<Plan>, PlanError> {
    let Some((mut cut, ids)) = cut(changed, programmed) else { return Ok(None) };
    let mut plan = Plan { services: ids, ..Plan::default() };
    let limits = &wanted.limits;
    let Some(mut room) = Room::kept(changed, &cut, &plan, limits) else { return Ok(None) };
    let numbers = || {
        let used = programmed.parts().flat_map(|part| part.backends.keys().copied());
        Numbers::backends_except(used.chain(in_use.backends.iter().copied()).collect(), limits.backends)
    };
    let blocks = Blocks::beside(&cut);
    let placed = backends::plan_backends((changed, &cut), limits, numbers, blocks, in_use, now_ns, &mut plan);
    let inputs = Inputs { services: changed, programmed: &cut, slots, placed: &placed, limits, now_ns };
    let slots = services::plan_services(&inputs, &mut room, memo, &mut plan);
    plan.complete()?;
    add_addresses(wanted, programmed, &mut cut, &mut plan.target);
    let flags = settings_flags(&plan.target);
    plan.target.settings = cut.settings.map(|settings| Settings { flags: settings.flags | flags, ..settings });
    plan.writes = writes::writes(&cut, &plan.target, slots);
    Ok(Some(plan))
}

/// The entries of these services and what all services share (settings, SNAT addresses, free
/// backend entries), as an image; and the services' ids. `None` if the programmed VIPs of a service
/// are not the wanted ones.
fn cut(changed: &[Arc<WantedService>], programmed: &Programmed) -> Option<(Image, BTreeMap<ServiceName, u32>)> {
    let common = &programmed.common;
    let mut cut = Image {
        settings: common.settings,
        snat_addresses: common.snat_addresses.clone(),
        backends: common.free.clone(),
        ..Image::default()
    };
    let mut ids = BTreeMap::new();
    for service in changed {
        let part = programmed.named(&service.name)?;
        let vips: BTreeSet<SocketAddr> = service.served().collect();
        let running = part.services.iter().filter(|(_, entry)| entry.draining_since_ns == 0);
        let running: BTreeMap<SocketAddr, _> = running.map(|(vip, entry)| (*vip, *entry)).collect();
        if !running.keys().eq(&vips) {
            return None;
        }
        ids.insert(service.name.clone(), part.id);
        cut.services.extend(running);
        cut.backends.extend(&part.backends);
    }
    Some((cut, ids))
}

/// Adds to `target` the addresses that these services need, and to `cut` those of them that the
/// maps already hold.
fn add_addresses(wanted: &Wanted, programmed: &Programmed, cut: &mut Image, target: &mut Image) {
    for (address, bits) in address_bits(target) {
        let known = programmed.common.addresses.get(&address).copied();
        cut.addresses.extend(known.map(|known| (address, known)));
        let node = if wanted.node_addresses.contains(&address) { NODE } else { 0 };
        target.addresses.insert(address, known.unwrap_or(0) | bits | node);
    }
}
