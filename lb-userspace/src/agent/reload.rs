//! Reload of the configuration: a new configuration is applied as a whole or refused as a whole.

use std::{sync::Arc, time::SystemTime};

use tracing::{debug, error, info, warn};

use super::{
    core::Agent,
    node::NodeWanted,
    reconcile::Read,
    report::counted,
    wanted::{Desired, wanted},
};
use crate::{
    clock::{boottime_ns, unix_now},
    dataplane::plan::plan,
    model::{
        Config, Limits, incompatible,
        limits::{Exceeded, Need},
        seed::Seed,
    },
    source::file::Loaded,
    state::{BackendId, Health},
};

/// The file content that was judged last, and the result. The same content can arrive repeatedly,
/// from inotify and from reload requests, in any order.
#[derive(Debug)]
pub struct Judged {
    content: Arc<Loaded>,
    at: SystemTime,
    /// Empty if it was accepted.
    errors: Vec<String>,
}

impl Judged {
    pub fn accepted(content: Arc<Loaded>) -> Self {
        Self { content, at: SystemTime::now(), errors: Vec::new() }
    }

    /// Whether this content has already been logged with these errors.
    fn has_said(&self, content: &Loaded, errors: &[String]) -> bool {
        self.content.is_same(content) && self.errors == errors
    }
}

impl Agent {
    /// Reads the file now. Returns what was done, or why the file was refused.
    pub(super) async fn reload(&mut self, accept_loss: bool) -> Result<String, Vec<String>> {
        match self.source.reload().await {
            Ok(loaded) => self.take_config(&loaded, accept_loss),
            Err(stopped) => Err(vec![stopped.to_string()]),
        }
    }

    /// Takes new content from the source, unless an explicit reload has already judged it.
    pub(super) fn follow(&mut self, loaded: &Arc<Loaded>) {
        if !self.judged.content.is_same(loaded) {
            // The result is in the log and the status.
            drop(self.take_config(loaded, false));
        }
    }

    /// Applies the configuration, or returns why not and changes nothing. Each result is logged in
    /// full only once.
    fn take_config(&mut self, loaded: &Arc<Loaded>, accept_loss: bool) -> Result<String, Vec<String>> {
        let before = self.desired.config.clone();
        let result = match &loaded.result {
            Ok(config) => self.try_config(config, accept_loss),
            Err(error) => Err(error.messages()),
        };
        self.is_report_due = true;
        let errors = result.as_ref().err().cloned().unwrap_or_default();
        let is_taken_over = !Arc::ptr_eq(&before, &self.desired.config);
        let is_said = !is_taken_over && self.judged.has_said(loaded, &errors);
        let file = &self.config_status.path;
        match &result {
            Ok(message) if is_said => debug!(file, "configuration: {message}"),
            Ok(message) => info!(file, "configuration: {message}"),
            Err(errors) if is_said => {
                let at = humantime::format_rfc3339_seconds(self.judged.at);
                let mistakes = counted(errors.len(), "mistake");
                error!(file, "the file is still refused, as was said at {at}: {mistakes}");
            }
            Err(errors) => {
                for error in errors {
                    error!(file, error, "the new configuration is refused; the running one stays");
                }
            }
        }
        if !is_said {
            self.judged = Judged { content: Arc::clone(loaded), at: SystemTime::now(), errors: errors.clone() };
        }
        self.config_status.last_reload_ok = errors.is_empty();
        self.config_status.errors = errors;
        result
    }

    fn try_config(&mut self, config: &Config, accept_loss: bool) -> Result<String, Vec<String>> {
        let running = self.desired.config.clone();
        let seed = self.seed_of(config).map_err(|error| vec![error])?;
        if *config == *running && seed == self.desired.seed {
            return Ok("nothing has changed".to_owned());
        }
        // The maps have the sizes with which the agent was started.
        let limits = self.desired.limits;
        let exceeded = Need::of(config).exceeds(&limits);
        if !exceeded.is_empty() {
            return Err(exceeded.iter().map(|one| needs_larger_maps(one, config)).collect());
        }
        let losses = incompatible(&running, &self.desired.seed, config, &seed);
        if !losses.is_empty() && !accept_loss {
            return Err(losses.iter().map(ToString::to_string).collect());
        }
        let desired = Desired {
            config: Arc::new(config.clone()),
            limits,
            seed,
            overrides: self.desired.overrides.clone(),
            since_ns: boottime_ns(),
            is_traced: self.desired.is_traced,
        };
        let mut health = self.health.clone();
        carry_health(&running, config, &mut health);
        // A configuration that does not fit into the maps is refused like any other mistake.
        if let Some(image) = &self.programmed {
            let wanted = wanted(&desired, &health, &self.node.borrow(), &mut self.rings);
            plan(&wanted, image, &self.census.borrow().in_use(), desired.since_ns)
                .map_err(|error| vec![error.to_string()])?;
        }
        let mut message = summary(&running, config);
        let waiting = needs_restart(&running, config, &limits);
        for what in &waiting {
            warn!("{what} has changed: that takes a restart of the agent, which loses nothing");
        }
        if !waiting.is_empty() {
            message.push_str(&format!(
                "; a restart of the agent, which loses nothing, is needed for: {}",
                waiting.join(", ")
            ));
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
        match config.node.hash_seed {
            Some(seed) => Ok(seed),
            None => self.state_dir.hash_seed().map_err(|error| error.to_string()),
        }
    }
}

/// Backends keep their health. A backend that was served without probes counts as up until its
/// first verdict; otherwise its service would reject until then.
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

/// Why a configuration does not fit into the maps that this agent has, though its own limits may
/// suffice.
fn needs_larger_maps(exceeded: &Exceeded, config: &Config) -> String {
    if u64::from(config.node.limits.of(exceeded.limit)) < exceeded.needed {
        return exceeded.to_string();
    }
    let Exceeded { limit, allows, needed, .. } = exceeded;
    format!(
        "{} has changed from {allows} to {}, and {needed} are needed: that takes a restart of the agent, which loses nothing",
        limit.key(),
        config.node.limits.of(*limit),
    )
}

fn summary(running: &Config, config: &Config) -> String {
    let backends = |config: &Config| -> Vec<BackendId> {
        let of = |service: &crate::model::Service| {
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

/// The keys that have changed and take a restart; `limits` are those that the maps have.
fn needs_restart(running: &Config, config: &Config, limits: &Limits) -> Vec<&'static str> {
    let mut what = Vec::new();
    if running.node.admin.socket != config.node.admin.socket {
        what.push("admin.socket");
    }
    if running.node.admin.http != config.node.admin.http {
        what.push("admin.http");
    }
    if running.node.flow_tables != config.node.flow_tables {
        what.push("flowTables");
    }
    if config.node.limits != *limits {
        what.push("limits");
    }
    what
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{self, LoadError},
        model::limits::Limit,
    };

    fn loaded(text: &str, digest: &str) -> Arc<Loaded> {
        let result = config::parse(text, Path::new("weir.yaml")).map_err(LoadError::from);
        Arc::new(Loaded { result, digest: Some(digest.to_owned()) })
    }

    #[test]
    fn sizes_of_maps_wait_for_a_restart_and_are_named() {
        let parse = |more: &str| {
            let text = format!("version: 1\ninterfaces: [eth0]\nservices: []\n{more}\n");
            config::parse(&text, Path::new("weir.yaml")).unwrap()
        };
        let running = parse("");
        for (more, expected) in [
            ("", vec![]),
            ("limits: { ringSlots: 8388608 }", vec!["limits"]),
            ("flowTables: { seen: 2048 }", vec!["flowTables"]),
            ("limits: { ringSlots: 4194304 }", vec![]),
        ] {
            assert_eq!(needs_restart(&running, &parse(more), &running.node.limits), expected, "{more}");
        }
        // The file may have been taken over before; the maps are as they were.
        let raised = parse("limits: { ringSlots: 8388608 }");
        assert_eq!(needs_restart(&raised, &raised, &running.node.limits), ["limits"]);
        let exceeded = Exceeded { limit: Limit::RingSlots, allows: 4_194_304, needed: 5_000_000, family: None };
        let said = needs_larger_maps(&exceeded, &raised);
        assert!(said.contains("from 4194304 to 8388608") && said.contains("restart"), "{said}");
        assert!(needs_larger_maps(&exceeded, &running).contains("set it to 5000000 or more"));
    }

    #[test]
    fn judgement_is_said_again_only_of_other_content_or_for_other_reasons() {
        let text = "version: 1\ninterfaces: [eth0]\nservices: []\n";
        let judged = Judged::accepted(loaded(text, "a"));
        let refused = ["it would move connections".to_owned()];
        assert!(judged.has_said(&loaded(text, "a"), &[]));
        assert!(!judged.has_said(&loaded(text, "b"), &[]), "a comment has changed");
        assert!(!judged.has_said(&loaded(text, "a"), &refused), "the machine has changed");
        let judged = Judged { errors: refused.to_vec(), ..judged };
        assert!(judged.has_said(&loaded(text, "a"), &refused));
        assert!(!judged.has_said(&loaded(text, "a"), &[]));
    }
}
