//! Answers all queries that change nothing: documents, scrapes, look-ups, differences. It uses the
//! state that the owner of the maps has published and its own handles to the maps, so that a change
//! of health waits for no query.

mod diff;
mod digests;
mod lookup;
mod queries;
mod samples;
mod snapshot;

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, watch};
use tracing::warn;

use self::{
    diff::diff,
    digests::{Digests, RingViews},
    queries::{list_flows, lookup_flow},
    samples::{Sampled, Samples},
    snapshot::{Moment, shortages},
};
use super::{
    flows::Counted,
    handle::{Answer, Queries, Rates},
    node::Node,
    overriding::choose,
    published::Published,
    settle::Settled,
    trace::Tracer,
};
use crate::{
    clock::{boottime_ns, unix_now},
    dataplane::{
        image::Image,
        maps::{Maps, MapsError},
        plan::plan,
        rings::Rings,
        stats::{Counters, Sample},
    },
    health::HealthViews,
    state::{BackendId, ServiceName},
    view::{
        trace::{TraceQuery, TraceView},
        types::{
            ApiError, BackendView, DiffView, ErrorCode, Finding, FlowFilter, FlowView, LookupQuery, LookupView,
            Overall, Snapshot,
        },
    },
};

/// The inputs for the documents, besides the maps.
pub struct Sources {
    pub published: watch::Receiver<Arc<Published>>,
    pub node: watch::Receiver<Arc<Node>>,
    pub census: watch::Receiver<Counted>,
    pub settled: watch::Receiver<Settled>,
    pub findings: watch::Receiver<Vec<Finding>>,
    pub health: HealthViews,
    /// When somebody last asked for counts of connections.
    pub looked_at: watch::Sender<Option<tokio::time::Instant>>,
    pub tracer: Tracer,
}

/// Clones share one reader. Its functions take up to some hundred milliseconds with thousands of
/// backends: call them on a thread that may block.
#[derive(Clone)]
pub struct Reader(Arc<ReaderState>);

struct ReaderState {
    sources: Sources,
    pin_dir: PathBuf,
    slots: Arc<Rings>,
    counters: Counters,
    samples: Mutex<Samples>,
    digests: Mutex<Digests>,
    /// The last overall state, and since when it has been the same, in seconds since 1970.
    overall: Mutex<(Overall, f64)>,
    started_at: f64,
}

impl Reader {
    /// Opens the reader's own handles to the maps that are pinned in `pin_dir`.
    pub fn open(pin_dir: &Path, slots: Arc<Rings>, sources: Sources) -> Result<Self, MapsError> {
        Ok(Self(Arc::new(ReaderState {
            sources,
            pin_dir: pin_dir.to_owned(),
            slots,
            counters: Counters::open(pin_dir)?,
            samples: Mutex::default(),
            digests: Mutex::default(),
            overall: Mutex::new((Overall::Down, unix_now())),
            started_at: unix_now(),
        })))
    }

    fn moment(&self, asked: DocumentScope<'_>) -> Moment {
        let ReaderState { sources, slots, samples, digests, .. } = &*self.0;
        if asked == DocumentScope::All(Rates::Measured) {
            sources.looked_at.send_replace(Some(tokio::time::Instant::now()));
        }
        let published = sources.published.borrow().clone();
        let node = sources.node.borrow().clone();
        let sample = || self.sample(&published, &node, asked);
        let sampled = match asked {
            DocumentScope::All(rates) => lock(samples).take(rates, sample),
            DocumentScope::Services(_) => lock(samples).beside(sample()),
            DocumentScope::State => Sampled::default(),
        };
        let Published { wanted, programmed, .. } = &*published;
        let mut rings = RingViews::new();
        if asked != DocumentScope::State {
            let mut digests = lock(digests);
            digests.forget_gone(programmed);
            for service in wanted.services.iter().filter(|service| asked.includes(&service.name)) {
                digests.add_views(service, programmed, &**slots, &mut rings);
            }
        }
        Moment {
            rings,
            sampled,
            node,
            census: sources.census.borrow().clone(),
            settled: sources.settled.borrow().clone(),
            findings: sources.findings.borrow().clone(),
            health: sources.health.of(|service| asked.includes(service)),
            published,
        }
    }

    fn document(&self, asked: DocumentScope<'_>) -> Snapshot {
        let mut snapshot = self.moment(asked).snapshot(self.0.started_at);
        let mut overall = lock(&self.0.overall);
        if overall.0 != snapshot.status.state {
            *overall = (snapshot.status.state, unix_now());
        }
        snapshot.status.state_since = overall.1;
        snapshot
    }

    fn sample(&self, published: &Published, node: &Node, asked: DocumentScope<'_>) -> Option<Sample> {
        let parts = || published.programmed.parts().filter(|part| asked.includes(&part.name));
        let services = parts().flat_map(|part| part.services.values()).map(|entry| entry.stats).collect();
        let backends = parts().flat_map(|part| part.backends.keys().copied()).collect();
        let interfaces = node.hooks.iter().map(|hook| hook.ifindex).collect();
        match self.0.counters.sample(&services, &backends, &interfaces) {
            Ok(sample) => Some(sample),
            Err(error) => {
                warn!(%error, "cannot read the counters");
                None
            }
        }
    }

    /// A summary of everything that the overall state depends on.
    pub fn pulse(&self) -> Pulse {
        let sources = &self.0.sources;
        Pulse {
            published: sources.published.borrow().clone(),
            node: sources.node.borrow().clone(),
            is_without_room: sources.settled.borrow().without_room() > 0,
            shortages: shortages(&sources.census.borrow(), &sources.settled.borrow()),
        }
    }

    /// The present contents of the maps, including changes by other programs.
    fn image(&self) -> Result<Image, MapsError> {
        Maps::open(&self.0.pin_dir)?.read()
    }

    fn published(&self) -> Arc<Published> {
        self.0.sources.published.borrow().clone()
    }
}

impl Queries for Reader {
    fn snapshot(&self, rates: Rates) -> Snapshot {
        self.document(DocumentScope::All(rates))
    }

    fn state(&self) -> Snapshot {
        self.document(DocumentScope::State)
    }

    fn backends(&self, chosen: &[BackendId]) -> Vec<BackendView> {
        let services: BTreeSet<&ServiceName> = chosen.iter().map(|id| &id.service).collect();
        let chosen: HashSet<&BackendId> = chosen.iter().collect();
        let mut views =
            self.moment(DocumentScope::Services(&services)).backend_views(|service| services.contains(service));
        views.retain(|view| chosen.contains(&view.id()));
        views
    }

    fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowView>, ApiError> {
        let published = self.published();
        let Published { desired, programmed, .. } = &*published;
        let chosen = filter.backend.as_ref().map(|selector| choose(selector, desired, programmed)).transpose()?;
        list_flows(&self.0.pin_dir, programmed, filter, chosen).map_err(failed)
    }

    /// Where the flow goes according to the present contents of the maps, which other programs may
    /// have changed.
    fn lookup(&self, query: &LookupQuery) -> Result<LookupView, ApiError> {
        let image = self.image().map_err(failed)?;
        lookup_flow(&self.0.pin_dir, &self.published().programmed, image, &*self.0.slots, query).map_err(failed)
    }

    fn diff(&self) -> Result<Vec<DiffView>, ApiError> {
        let published = self.published();
        let image = self.image().map_err(failed)?;
        let in_use = self.0.sources.census.borrow().in_use();
        let plan = plan(&published.wanted, &image, &*self.0.slots, &in_use, boottime_ns())
            .map_err(|error| ApiError { code: ErrorCode::Failed, message: error.to_string() })?;
        Ok(diff(&image, &plan))
    }

    fn trace(&self, query: TraceQuery, answer: Answer<mpsc::Receiver<TraceView>>) {
        self.0.sources.tracer.ask(query, answer);
    }
}

/// What a query asks for, which determines what must be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DocumentScope<'a> {
    All(Rates),
    /// The backends of these services.
    Services(&'a BTreeSet<&'a ServiceName>),
    /// The overall state, for which no counter and no slot is read.
    State,
}

impl DocumentScope<'_> {
    fn includes(&self, service: &ServiceName) -> bool {
        match self {
            DocumentScope::All(_) | DocumentScope::State => true,
            DocumentScope::Services(services) => services.contains(service),
        }
    }
}

/// A summary of everything that the overall state depends on: while the summary is equal, so is the
/// state.
#[derive(Clone, Debug)]
pub struct Pulse {
    pub published: Arc<Published>,
    node: Arc<Node>,
    is_without_room: bool,
    shortages: Vec<String>,
}

impl PartialEq for Pulse {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.published, &other.published)
            && self.is_without_room == other.is_without_room
            && self.shortages == other.shortages
            && Arc::ptr_eq(&self.node, &other.node)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: MapsError) -> ApiError {
    ApiError { code: ErrorCode::Failed, message: error.to_string() }
}
