//! Drains and weights that are set with the CLI, and override the file.

use std::collections::BTreeSet;

use super::{desired::Desired, select::select};
use crate::{
    dataplane::programmed::Programmed,
    model::MAX_WEIGHT,
    overrides::{Effective, Overrides, effective, weightless_family},
    state::{AdminState, BackendId, Origin, ServiceName},
    view::types::{ApiError, BackendSelector, ErrorCode},
};

/// The overrides after a change, and the messages about it.
#[derive(Debug)]
pub struct Change {
    pub overrides: Overrides,
    /// One message for each chosen backend.
    pub messages: Vec<String>,
    pub chosen: Vec<BackendId>,
}

/// All backends that match the selector: declared backends, and removed ones that still drain.
pub fn choose(
    selector: &BackendSelector,
    desired: &Desired,
    programmed: &Programmed,
) -> Result<Vec<BackendId>, ApiError> {
    let declared = desired.config.services.iter().flat_map(|service| {
        service.backends.iter().map(|backend| BackendId { service: service.name.clone(), address: backend.address })
    });
    let mut known: Vec<BackendId> = declared.collect();
    let is_declared = |id: &BackendId| desired.backend(id).is_some();
    let leaving: BTreeSet<BackendId> =
        programmed.leaving().map(|one| programmed.id_of(one)).filter(|id| !is_declared(id)).collect();
    known.extend(leaving);
    select(selector, &known)
}

pub fn drain(desired: &Desired, chosen: Vec<BackendId>) -> Change {
    let mut overrides = desired.overrides.clone();
    let mut messages = Vec::new();
    for id in &chosen {
        let is_new = overrides.set_drain(id, true);
        messages.push(match file_state(desired, id) {
            None => format!("{id} has left the file and drains already"),
            Some(AdminState::Disabled) => {
                format!("{id} is disabled by the file, which is stronger; once enabled it drains")
            }
            Some(AdminState::Draining) => format!("{id} is drained by the file already; now also by the CLI"),
            Some(AdminState::Active) if is_new => format!("{id} drains: no new connections, old ones go on"),
            Some(AdminState::Active) => format!("{id} drained already"),
        });
    }
    // A backend that left the file has no setting that could be overridden.
    for id in chosen.iter().filter(|id| file_state(desired, id).is_none()) {
        overrides.set_drain(id, false);
    }
    Change { overrides, messages, chosen }
}

pub fn undrain(desired: &Desired, chosen: Vec<BackendId>) -> Result<Change, ApiError> {
    let mut overrides = desired.overrides.clone();
    let mut messages = Vec::new();
    let mut is_in_vain = true;
    for id in &chosen {
        let was_set = overrides.set_drain(id, false);
        let (message, is_done) = match file_state(desired, id) {
            None => (format!("{id} drains because it left the file: declare it there again"), false),
            Some(AdminState::Draining) => {
                (format!("{id} is drained by the file (state: draining): change it there"), was_set)
            }
            Some(AdminState::Disabled) => {
                (format!("{id} is disabled by the file (state: disabled): change it there"), was_set)
            }
            Some(AdminState::Active) if was_set => (format!("{id} is active again"), true),
            Some(AdminState::Active) => (format!("{id} was not drained"), true),
        };
        messages.push(message);
        is_in_vain &= !is_done;
    }
    if is_in_vain {
        return Err(ApiError { code: ErrorCode::Invalid, message: messages.join("; ") });
    }
    Ok(Change { overrides, messages, chosen })
}

/// `weight: None` removes the override.
pub fn set_weight(desired: &Desired, chosen: Vec<BackendId>, weight: Option<u32>) -> Result<Change, ApiError> {
    let invalid = |message: String| ApiError { code: ErrorCode::Invalid, message };
    if let Some(weight) = weight.filter(|weight| *weight > MAX_WEIGHT) {
        return Err(invalid(format!("a weight of {weight} is too large: at most {MAX_WEIGHT}")));
    }
    let mut overrides = desired.overrides.clone();
    let mut messages = Vec::new();
    for id in &chosen {
        let Some(before) = effective_by(desired, id, &desired.overrides) else {
            return Err(invalid(format!("{id} has left the file and only drains: it has no weight")));
        };
        let is_new = overrides.set_weight(id, weight);
        let after = effective_by(desired, id, &overrides).map_or(before.weight, |after| after.weight);
        messages.push(match weight {
            Some(weight) if is_new => format!("{id} has weight {weight} (it was {})", before.weight),
            Some(weight) => format!("{id} had weight {weight} already"),
            None if before.weight_from == Origin::Cli => format!("{id} has the file's weight again: {after}"),
            None => format!("{id} had the file's weight already: {after}"),
        });
    }
    let services: BTreeSet<&ServiceName> = chosen.iter().map(|id| &id.service).collect();
    for service in services.into_iter().filter_map(|name| desired.service(name)) {
        if let Some(family) = weightless_family(service, &overrides) {
            let message = format!(
                "no {family} backend of service {} would have a weight; to take all out, `weir drain` them",
                service.name
            );
            return Err(invalid(message));
        }
    }
    Ok(Change { overrides, messages, chosen })
}

fn file_state(desired: &Desired, id: &BackendId) -> Option<AdminState> {
    desired.backend(id).map(|backend| backend.state)
}

fn effective_by(desired: &Desired, id: &BackendId, overrides: &Overrides) -> Option<Effective> {
    desired.backend(id).map(|backend| effective(backend, overrides.of(id)))
}
