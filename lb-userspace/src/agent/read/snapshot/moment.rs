//! The data for the documents.

use std::{collections::BTreeMap, sync::Arc};

use super::super::{digests::RingViews, samples::Sampled};
use crate::{
    agent::{flows::Counted, node::Node, published::Published, settle::Settled},
    dataplane::stats::Sample,
    health::HealthView,
    state::BackendId,
    view::types::Finding,
};

/// All data for the documents, as it was at one moment.
pub struct Moment {
    pub published: Arc<Published>,
    pub node: Arc<Node>,
    pub census: Counted,
    pub settled: Settled,
    pub findings: Vec<Finding>,
    pub health: BTreeMap<BackendId, HealthView>,
    pub sampled: Sampled,
    pub rings: RingViews,
}

impl Moment {
    /// The growth of a counter per second; 0 if it can't be read.
    pub fn rate(&self, value: impl Fn(&Sample) -> u64) -> f64 {
        self.sampled.now.as_deref().map_or(0.0, |now| now.per_second(self.sampled.before.as_deref(), value))
    }
}
