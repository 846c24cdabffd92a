//! What the owner of the maps publishes after every change, for all that only reads.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::desired::Desired;
use crate::{
    dataplane::{plan::Wanted, programmed::Programmed},
    source::{Heard, merge::Refusal},
    state::ServiceName,
    view::types::{ConfigStatus, SyncStatus},
};

/// The state of the owner at one moment. A copy takes a moment too: what belongs to a service is
/// shared.
#[derive(Clone, Debug)]
pub struct Published {
    pub desired: Desired,
    /// What the maps should hold. Its services are those of the configuration, in the same order,
    /// and so are the backends of each.
    pub wanted: Wanted,
    pub programmed: Programmed,
    /// When each service became known to this agent.
    pub seen_since: Arc<BTreeMap<ServiceName, Instant>>,
    pub sync: SyncStatus,
    pub config: ConfigStatus,
    /// What the sources beside the file say, and what was refused of it.
    pub heard: Heard,
    pub refusals: Arc<Vec<Refusal>>,
    /// Whether the agent still waits for the first verdicts on its backends.
    pub is_starting: bool,
    /// How many reloads were reported to the supervisor.
    pub reloads: u64,
}
