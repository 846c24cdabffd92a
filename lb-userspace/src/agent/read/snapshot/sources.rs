//! The sources other than the file: their state, and which of their services were refused.

use std::sync::Arc;

use crate::{
    agent::published::Published,
    clock::unix,
    source::{Knowledge, Said},
    view::types::{RefusedView, SourceView},
};

pub fn views(published: &Published) -> Vec<SourceView> {
    let view = |(source, said): (&&'static str, &Arc<Said>)| {
        let refused = published.refusals.iter().filter(|refusal| refusal.source == *source);
        SourceView {
            name: (*source).to_owned(),
            synced: said.knowledge == Knowledge::Synced,
            failing_since: said.failing.as_ref().map(|failing| unix(failing.since)),
            error: said.failing.as_ref().map(|failing| failing.error.clone()),
            services: said.services.len() as u64,
            refused: refused
                .map(|refusal| RefusedView {
                    service: refusal.service.to_string(),
                    reason: refusal.reason.clone(),
                    kept: refusal.is_kept,
                })
                .collect(),
        }
    };
    published.heard.iter().map(view).collect()
}

/// The reasons why the overall state is not `ok`, as far as these sources are concerned.
pub fn reasons(published: &Published) -> Vec<String> {
    let mut reasons = Vec::new();
    for (source, said) in &published.heard {
        let state = match said.knowledge {
            Knowledge::Nothing => {
                Some("has not listed its services yet: entries in the maps that no source claims stay")
            }
            Knowledge::Remembered => Some("has not listed its services yet: those saved before this start are served"),
            Knowledge::Synced => None,
        };
        reasons.extend(state.map(|state| format!("{source} {state}")));
        reasons.extend(said.failing.as_ref().map(|failing| format!("{source} can't be reached: {}", failing.error)));
    }
    for refusal in &*published.refusals {
        let served = if refusal.is_kept { "its previous version is still served" } else { "it is not served" };
        reasons.push(format!(
            "service {} of {} is refused, {served}: {}",
            refusal.service, refusal.source, refusal.reason
        ));
    }
    reasons
}
