//! A new configuration: taken over whole, or refused whole.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::{
    core::{Agent, unix_now},
    node::NodeWanted,
    reconcile::Read,
    wanted::{Desired, wanted},
};
use crate::{
    config::{Config, incompatible, seed::Seed},
    dataplane::{flows::boottime_ns, plan::plan},
    source::file::Loaded,
    state::{BackendId, Health},
};

impl Agent {
    /// Reads the file now. What was done, or why it was refused.
    pub(super) async fn reload(&mut self, accept_loss: bool) -> Result<String, Vec<String>> {
        match self.source.reload().await {
            Ok(loaded) => {
                // It comes by the channel as well; once is enough.
                self.loaded.mark_unchanged();
                self.take_config(&loaded, accept_loss)
            }
            Err(stopped) => Err(vec![stopped.to_string()]),
        }
    }

    /// Takes the configuration over, or says why not; nothing is changed then.
    pub(super) fn take_config(&mut self, loaded: &Loaded, accept_loss: bool) -> Result<String, Vec<String>> {
        let result = match &loaded.result {
            Ok(config) => self.try_config(config, accept_loss),
            Err(error) => Err(error.messages()),
        };
        match &result {
            Ok(message) => {
                self.config_status.last_reload_ok = true;
                self.config_status.errors.clear();
                info!(file = self.config_status.path, "configuration: {message}");
            }
            Err(errors) => {
                self.config_status.last_reload_ok = false;
                self.config_status.errors.clone_from(errors);
                for error in errors {
                    error!(
                        file = self.config_status.path,
                        error, "the new configuration is refused; the running one stays"
                    );
                }
            }
        }
        result
    }

    fn try_config(&mut self, config: &Config, accept_loss: bool) -> Result<String, Vec<String>> {
        let running = self.desired.config.clone();
        let seed = self.seed_of(config).map_err(|error| vec![error])?;
        if *config == *running && seed == self.desired.seed {
            return Ok("nothing has changed".to_owned());
        }
        let losses = incompatible(&running, &self.desired.seed, config, &seed);
        if !losses.is_empty() && !accept_loss {
            return Err(losses.iter().map(ToString::to_string).collect());
        }
        let desired = Desired {
            config: Arc::new(config.clone()),
            seed,
            overrides: self.desired.overrides.clone(),
            since_ns: boottime_ns(),
            is_traced: self.desired.is_traced,
        };
        let mut health = self.health.clone();
        carry_health(&running, config, &mut health);
        // What has no room in the maps is refused like any other mistake.
        if let Some(image) = &self.programmed {
            let wanted = wanted(&desired, &health, &self.node.borrow(), &mut self.rings);
            plan(&wanted, image, &self.census.borrow().in_use(), desired.since_ns)
                .map_err(|error| vec![error.to_string()])?;
        }
        let message = summary(&running, config);
        for what in needs_restart(&running, config) {
            warn!("{what} has changed: that takes a restart of the agent, which loses nothing");
        }
        self.examination.config.send_replace(desired.config.clone());
        self.desired = desired;
        self.health = health;
        self.config_status.loaded_at = unix_now();
        self.node_wanted.send_if_modified(|wanted| {
            let next = NodeWanted::of(config, wanted.attach);
            let differs = *wanted != next;
            *wanted = next;
            differs
        });
        self.publish_targets();
        self.reconcile(Read::Maps);
        self.forget_overrides();
        Ok(message)
    }

    fn seed_of(&self, config: &Config) -> Result<Seed, String> {
        match config.hash_seed {
            Some(seed) => Ok(seed),
            None => self.state_dir.hash_seed().map_err(|error| error.to_string()),
        }
    }
}

/// Backends keep their health; one that was served without probes counts as up until the first verdict, or its service would reject until then.
fn carry_health(running: &Config, config: &Config, health: &mut super::wanted::HealthOf) {
    for service in config.services.iter().filter(|service| service.health.is_some()) {
        let Some(before) = running.services.iter().find(|before| before.name == service.name) else { continue };
        if before.health.is_some() {
            continue;
        }
        for backend in
            service.backends.iter().filter(|backend| before.backends.iter().any(|b| b.address == backend.address))
        {
            let id = BackendId { service: service.name.clone(), address: backend.address };
            health.insert(id, (Health::Up, 0));
        }
    }
    health.retain(|id, _| {
        let service = config.services.iter().find(|service| service.name == id.service);
        service.is_some_and(|service| service.backends.iter().any(|backend| backend.address == id.address))
    });
}

fn summary(running: &Config, config: &Config) -> String {
    let backends = |config: &Config| -> Vec<BackendId> {
        let of = |service: &crate::config::model::Service| {
            let name = service.name.clone();
            let ids = service
                .backends
                .iter()
                .map(move |backend| BackendId { service: name.clone(), address: backend.address });
            ids.collect::<Vec<_>>()
        };
        config.services.iter().flat_map(of).collect()
    };
    let (before, after) = (backends(running), backends(config));
    let new = after.iter().filter(|id| before.binary_search(id).is_err()).count();
    let gone = before.iter().filter(|id| after.binary_search(id).is_err()).count();
    format!(
        "taken over: {} services, {} backends ({new} new, {gone} gone from it and draining)",
        config.services.len(),
        after.len()
    )
}

fn needs_restart(running: &Config, config: &Config) -> Vec<&'static str> {
    let mut what = Vec::new();
    if running.admin.socket != config.admin.socket {
        what.push("admin.socket");
    }
    if running.admin.http != config.admin.http {
        what.push("admin.http");
    }
    what
}
