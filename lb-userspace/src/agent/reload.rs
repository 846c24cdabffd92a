//! Reload of the configuration: a new configuration is applied as a whole or refused as a whole.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::SystemTime};

use tokio::sync::watch;
use tracing::{debug, error, info};

use super::{desired::HealthOf, report::counted};
use crate::{
    clock::unix_now,
    model::{Config, Limits, limits::Exceeded},
    source::file::{FileSource, Loaded},
    state::{BackendId, Health, ServiceName},
    view::types::ConfigStatus,
};

/// The file content that was judged last, and the result. The same content can arrive repeatedly,
/// from inotify and from reload requests, in any order.
#[derive(Debug)]
struct Judged {
    content: Arc<Loaded>,
    at: SystemTime,
    /// Empty if the content was accepted.
    errors: Vec<String>,
}

impl Judged {
    fn accepted(content: Arc<Loaded>) -> Self {
        Self { content, at: SystemTime::now(), errors: Vec::new() }
    }

    /// Whether this content has already been logged with these errors.
    fn has_said(&self, content: &Loaded, errors: &[String]) -> bool {
        self.content.is_same(content) && self.errors == errors
    }
}

/// The outcome of a reload: what was done, or every reason why it was refused.
pub type Reload = Result<String, Vec<String>>;

/// The configuration file, and the outcome of its latest content.
pub struct File {
    pub source: FileSource,
    pub loaded: watch::Receiver<Arc<Loaded>>,
    pub status: ConfigStatus,
    judged: Judged,
}

impl File {
    /// `first` is the content from which the running configuration was read.
    pub fn new(source: FileSource, path: &Path, first: Arc<Loaded>) -> Self {
        Self {
            loaded: source.loaded(),
            source,
            status: ConfigStatus {
                path: path.display().to_string(),
                loaded_at: unix_now(),
                last_reload_ok: true,
                errors: Vec::new(),
            },
            judged: Judged::accepted(first),
        }
    }

    /// Whether this content has already been accepted or refused.
    pub fn is_judged(&self, loaded: &Loaded) -> bool {
        self.judged.content.is_same(loaded)
    }

    /// Notes that the configuration was taken over just now.
    pub fn note_loaded(&mut self) {
        self.status.loaded_at = unix_now();
    }

    /// Records the outcome for this content. Each outcome is logged in full only once.
    pub fn note(&mut self, loaded: &Arc<Loaded>, result: &Reload, is_taken_over: bool) {
        let errors = result.as_ref().err().cloned().unwrap_or_default();
        let is_said = !is_taken_over && self.judged.has_said(loaded, &errors);
        let file = &self.status.path;
        match result {
            Ok(message) if is_said => debug!(file, "configuration: {message}"),
            Ok(message) => info!(file, "configuration: {message}"),
            Err(errors) if is_said => {
                let at = humantime::format_rfc3339_seconds(self.judged.at);
                let mistakes = counted(errors.len(), "mistake");
                error!(file, "the file is still refused, as logged at {at}: {mistakes}");
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
        self.status.last_reload_ok = errors.is_empty();
        self.status.errors = errors;
    }
}

/// The names of the services that differ; `None` if anything else differs: the node's settings, or
/// the set of services.
pub fn changed_services(running: &Config, config: &Config) -> Option<BTreeSet<ServiceName>> {
    let names = |config: &Config| config.services.iter().map(|service| service.name.clone()).collect::<Vec<_>>();
    if running.node != config.node || names(running) != names(config) {
        return None;
    }
    let pairs = running.services.iter().zip(&config.services);
    Some(pairs.filter(|(before, after)| before != after).map(|(_, after)| after.name.clone()).collect())
}

/// Backends keep their health. A backend that was served without probes counts as up until its
/// first verdict; otherwise its service would reject connections until then.
pub fn carry_health(running: &Config, config: &Config, health: &mut HealthOf) {
    for service in config.services.iter().filter(|service| service.health.is_some()) {
        let Some(before) = running.service(&service.name) else { continue };
        if before.health.is_some() {
            continue;
        }
        for backend in &service.backends {
            let id = BackendId { service: service.name.clone(), address: backend.address };
            if running.backend(&id).is_some() {
                health.insert(id, (Health::Up, 0));
            }
        }
    }
    health.retain(|id, _| config.backend(id).is_some());
}

/// Why a configuration does not fit into this agent's maps, even if the limits in the configuration
/// itself would suffice.
pub fn needs_larger_maps(exceeded: &Exceeded, config: &Config) -> String {
    if u64::from(config.node.limits.of(exceeded.limit)) < exceeded.needed {
        return exceeded.to_string();
    }
    let Exceeded { limit, allows, needed, .. } = exceeded;
    format!(
        "{} has changed from {allows} to {}, and {needed} are needed: that takes a restart of the agent, which loses \
        nothing",
        limit.key(),
        config.node.limits.of(*limit),
    )
}

pub fn summary(running: &Config, config: &Config) -> String {
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

/// The changed keys that take effect only at a restart; `limits` are the limits of the present
/// maps.
pub fn needs_restart(running: &Config, config: &Config, limits: &Limits) -> Vec<&'static str> {
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
        config::{self, ConfigError},
        model::limits::Limit,
    };

    fn loaded(text: &str, digest: &str) -> Arc<Loaded> {
        let result = config::parse(text, Path::new("weir.yaml")).map_err(ConfigError::from);
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
        // Even if the running configuration already has the new limits, the maps have the old ones.
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
