//! The state that the owner of the maps publishes after every change, for all tasks that only read.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::desired::Desired;
use crate::{
    dataplane::{plan::Wanted, programmed::Programmed},
    source::{Heard, merge::Refusal},
    state::ServiceName,
    view::types::{ConfigStatus, SyncStatus},
};

/// The state of the owner at one moment. It is cheap to copy, because the data of each service is
/// shared.
#[derive(Clone, Debug)]
pub struct Published {
    pub desired: Desired,
    /// The desired contents of the maps. The services, and the backends of each service, are in the
    /// order of the configuration.
    pub wanted: Wanted,
    pub programmed: Programmed,
    /// When each service became known to this agent.
    pub seen_since: Arc<BTreeMap<ServiceName, Instant>>,
    pub sync: SyncStatus,
    pub config: ConfigStatus,
    /// The services from the sources other than the file.
    pub heard: Heard,
    /// The refused services of these sources.
    pub refusals: Arc<Vec<Refusal>>,
    /// Whether the agent still waits for the first verdicts on its backends.
    pub is_starting: bool,
    /// How many reloads were reported to the supervisor.
    pub reloads: u64,
}
