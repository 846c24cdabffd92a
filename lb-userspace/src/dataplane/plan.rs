//! A pure function from the wanted and the programmed state to the writes that make them equal.
//!
//! The first step makes the wanted image and keeps every index, range and counter of the programmed
//! image that is still right. The second step orders the differences so that a packet sees either
//! the old or the new state at any instant.

mod backends;
mod common;
mod entry;
mod flow_use;
mod ids;
mod part;
pub(super) mod planned;
mod recover;
mod services;
mod snat;
mod wanted;
mod writes;

pub use self::{
    entry::address,
    flow_use::FlowUse,
    part::plan_part,
    planned::{Leaving, Misfit, Plan, PlanError},
    recover::{Recovered, recover},
    services::{Audit, Memo},
    wanted::{TunnelEnds, Wanted, WantedBackend, WantedService},
};
use self::{
    services::{Inputs, Room},
    snat::Blocks,
};
use super::{
    arena::Numbers,
    image::{Image, Slots},
};

/// The writes that make the maps hold what is wanted, from any state of the maps, even one edited
/// by hand. No writes if everything is right already.
pub fn plan(
    wanted: &Wanted,
    programmed: &Image,
    slots: &dyn Slots,
    in_use: &FlowUse,
    now_ns: u64,
) -> Result<Plan, PlanError> {
    plan_again(wanted, programmed, slots, in_use, now_ns, &mut Memo::default())
}

/// Like [`plan`], but uses what `memo` remembers of the previous plan to skip unchanged rings. The
/// writes of that plan must have been applied.
pub fn plan_again(
    wanted: &Wanted,
    programmed: &Image,
    slots: &dyn Slots,
    in_use: &FlowUse,
    now_ns: u64,
    memo: &mut Memo,
) -> Result<Plan, PlanError> {
    let services = &wanted.services;
    let mut plan = Plan { services: ids::assign(services, programmed, wanted.holds), ..Plan::default() };
    if wanted.holds {
        plan.hold(programmed);
    }
    let numbers = || {
        let named = services::named(memo.unknown(programmed), slots, |slot| [slot.current(), slot.previous()]);
        Numbers::backends(programmed, &named, &in_use.backends, wanted.limits.backends)
    };
    let blocks = Blocks::of(programmed);
    let (limits, inputs) = (&wanted.limits, (services.as_slice(), programmed));
    let placed = backends::plan_backends(inputs, limits, numbers, blocks, in_use, now_ns, &mut plan);
    let leaving = services::leaving(services, programmed, in_use, now_ns, &mut plan);
    let inputs = Inputs { services, programmed, slots, placed: &placed, limits, now_ns };
    let mut room = Room::of(services, programmed, in_use, &plan, limits);
    memo.retain(&plan);
    let mut slots = services::plan_services(&inputs, &mut room, memo, &mut plan);
    plan.complete()?;
    slots.extend(services::plan_leaving(leaving, &inputs, room, &mut plan)?);
    plan.target.addresses = common::addresses(wanted, programmed, in_use, &plan.target);
    common::check_addresses(&wanted.limits, &plan.target)?;
    plan.target.settings = Some(common::settings(wanted, &plan.target));
    plan.target.ways_out = wanted.ways_out.clone();
    plan.target.peers = wanted.peers.clone();
    plan.writes = writes::writes(programmed, &plan.target, slots);
    Ok(plan)
}

#[cfg(test)]
mod tests;
