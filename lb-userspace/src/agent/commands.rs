//! Queries and commands that come through the API.

use std::net::SocketAddr;

use tracing::info;

use super::handle::Command;
use super::{core::Agent, diff::diff, reconcile::Read, select::select};
use crate::{
    clock::boottime_ns,
    dataplane::{maps::MapsError, plan::plan},
    model::MAX_WEIGHT,
    overrides::{Effective, Overrides, effective, weightless_family},
    state::{AdminState, BackendId, Origin},
    view::types::{ApiError, BackendSelector, Changed, DiffView, ErrorCode},
};

impl Agent {
    pub(super) async fn command(&mut self, command: Command) {
        let changes = matches!(
            command,
            Command::Drain(..) | Command::Undrain(..) | Command::SetWeight(..) | Command::Reload { .. }
        );
        self.is_report_due |= changes;
        match command {
            Command::Snapshot(answer) => {
                let snapshot = self.snapshot();
                // The requester may have gone; nobody else needs the snapshot.
                drop(answer.send(snapshot));
            }
            Command::Flows(filter, answer) => self.list_flows(&filter, answer),
            Command::Lookup(query, answer) => self.look_up(query, answer),
            Command::Drain(selector, answer) => drop(answer.send(self.drain(&selector))),
            Command::Undrain(selector, answer) => drop(answer.send(self.undrain(&selector))),
            Command::SetWeight(selector, weight, answer) => drop(answer.send(self.set_weight(&selector, weight))),
            Command::Diff(answer) => drop(answer.send(self.diff())),
            Command::Trace(query, answer) => self.tracer.ask(query, answer),
            Command::Reload { accept_loss, answer } => {
                let result = self.reload(accept_loss).await;
                drop(answer.send(match result {
                    Ok(message) => Ok(Changed { messages: vec![message], backends: Vec::new() }),
                    Err(errors) => Err(refused(&errors)),
                }));
            }
        }
    }

    fn drain(&mut self, selector: &BackendSelector) -> Result<Changed, ApiError> {
        let chosen = self.choose(selector)?;
        let mut overrides = self.desired.overrides.clone();
        let mut messages = Vec::new();
        for id in &chosen {
            let is_new = overrides.set_drain(id, true);
            messages.push(match self.file_state(id) {
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
        for id in chosen.iter().filter(|id| self.file_state(id).is_none()) {
            overrides.set_drain(id, false);
        }
        self.override_by(overrides, messages, &chosen)
    }

    fn undrain(&mut self, selector: &BackendSelector) -> Result<Changed, ApiError> {
        let chosen = self.choose(selector)?;
        let mut overrides = self.desired.overrides.clone();
        let mut messages = Vec::new();
        let mut is_in_vain = true;
        for id in &chosen {
            let was_set = overrides.set_drain(id, false);
            let (message, is_done) = match self.file_state(id) {
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
        self.override_by(overrides, messages, &chosen)
    }

    fn set_weight(&mut self, selector: &BackendSelector, weight: Option<u32>) -> Result<Changed, ApiError> {
        let invalid = |message: String| ApiError { code: ErrorCode::Invalid, message };
        if let Some(weight) = weight.filter(|weight| *weight > MAX_WEIGHT) {
            return Err(invalid(format!("a weight of {weight} is too large: at most {MAX_WEIGHT}")));
        }
        let chosen = self.choose(selector)?;
        let mut overrides = self.desired.overrides.clone();
        let mut messages = Vec::new();
        for id in &chosen {
            let Some(before) = self.effective(id) else {
                return Err(invalid(format!("{id} has left the file and only drains: it has no weight")));
            };
            let is_new = overrides.set_weight(id, weight);
            let after = self.effective_by(id, &overrides).map_or(before.weight, |after| after.weight);
            messages.push(match weight {
                Some(weight) if is_new => format!("{id} has weight {weight} (it was {})", before.weight),
                Some(weight) => format!("{id} had weight {weight} already"),
                None if before.weight_from == Origin::Cli => format!("{id} has the file's weight again: {after}"),
                None => format!("{id} had the file's weight already: {after}"),
            });
        }
        for service in &self.desired.config.services {
            if let Some(family) = weightless_family(service, &overrides) {
                let message = format!(
                    "no {family} backend of service {} would have a weight; to take all out, `weir drain` them",
                    service.name
                );
                return Err(invalid(message));
            }
        }
        self.override_by(overrides, messages, &chosen)
    }

    /// Applies the overrides. Saves them first, so that a change reported as successful survives a
    /// restart.
    fn override_by(
        &mut self,
        overrides: Overrides,
        messages: Vec<String>,
        chosen: &[BackendId],
    ) -> Result<Changed, ApiError> {
        if overrides != self.desired.overrides {
            self.state_dir.save(&overrides).map_err(|error| ApiError {
                code: ErrorCode::Failed,
                message: format!("nothing was changed: {error}"),
            })?;
            self.desired.overrides = overrides;
            self.reconcile(Read::Cached);
            for message in &messages {
                info!("by the CLI: {message}");
            }
        }
        if let Some(error) = &self.sync.last_error {
            let message = format!("it is noted, but the maps could not be written: {error}; it is tried again");
            return Err(ApiError { code: ErrorCode::Failed, message });
        }
        let is_chosen =
            |service: &str, address: SocketAddr| chosen.iter().any(|id| id.service == service && id.address == address);
        let mut backends = self.snapshot().backends;
        backends.retain(|view| is_chosen(&view.service, view.address));
        Ok(Changed { messages, backends })
    }

    pub(super) fn choose(&self, selector: &BackendSelector) -> Result<Vec<BackendId>, ApiError> {
        let services = self.desired.config.services.iter();
        let declared = services.flat_map(|service| {
            service.backends.iter().map(|backend| BackendId { service: service.name.clone(), address: backend.address })
        });
        let mut known: Vec<BackendId> = declared.collect();
        for one in &self.plan.leaving {
            let id = BackendId { service: self.service_name(one.service), address: one.address };
            if !known.contains(&id) {
                known.push(id);
            }
        }
        select(selector, &known)
    }

    fn file_state(&self, id: &BackendId) -> Option<AdminState> {
        self.declared(id).map(|backend| backend.state)
    }

    fn declared(&self, id: &BackendId) -> Option<&crate::model::Backend> {
        let service = self.desired.config.services.iter().find(|service| service.name == id.service)?;
        service.backends.iter().find(|backend| backend.address == id.address)
    }

    fn effective(&self, id: &BackendId) -> Option<Effective> {
        self.effective_by(id, &self.desired.overrides)
    }

    fn effective_by(&self, id: &BackendId, overrides: &Overrides) -> Option<Effective> {
        self.declared(id).map(|backend| effective(backend, overrides.of(id)))
    }

    fn diff(&mut self) -> Result<Vec<DiffView>, ApiError> {
        let image = self.maps.read().map_err(failed)?;
        let wanted = self.wanted();
        let in_use = self.census.borrow().in_use();
        let plan = plan(&wanted, &image, self.maps.slots(), &in_use, boottime_ns())
            .map_err(|error| ApiError { code: ErrorCode::Failed, message: error.to_string() })?;
        Ok(diff(&image, &plan))
    }

    /// The name of a service by its id; `removed-ID` for a service that left before this agent
    /// started.
    pub(super) fn service_name(&self, id: u32) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("removed-{id}"))
    }
}

pub(super) fn failed(error: MapsError) -> ApiError {
    ApiError { code: ErrorCode::Failed, message: error.to_string() }
}

fn refused(errors: &[String]) -> ApiError {
    let message = format!("the configuration is refused, the running one stays:\n  {}", errors.join("\n  "));
    ApiError { code: ErrorCode::Invalid, message }
}
