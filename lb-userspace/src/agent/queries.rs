//! Queries about single flows: listing them, and looking up where a flow goes. They run on blocking
//! threads, because there may be a million flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::exception::Exception;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::handle::Answer;
use super::{
    commands::failed,
    core::Agent,
    lookup::{self, lookup},
};
use crate::{
    clock::boottime_ns,
    dataplane::{
        image::Image,
        maps::MapsError,
        plan::address,
        tables::{
            FlowQuery,
            exceptions::{Exceptions, RawException},
            nat::{FlowTables, RawFlow},
        },
    },
    view::types::{ApiError, BackendSelector, FlowFilter, FlowView, LookupQuery, LookupView},
};

const DEFAULT_FLOWS: usize = 1000;

impl Agent {
    pub(super) fn list_flows(&self, filter: &FlowFilter, answer: Answer<Vec<FlowView>>) {
        let backends = match filter.backend.as_ref().map(|selector| self.indexes(selector)).transpose() {
            Ok(backends) => backends,
            Err(error) => {
                drop(answer.send(Err(error)));
                return;
            }
        };
        let limit = filter.limit.unwrap_or(DEFAULT_FLOWS);
        let query = FlowQuery { client: filter.client, vip: filter.vip, backends, limit };
        let with_seen = filter.seen;
        let flows = Flows { image: self.plan.target.clone(), names: self.names.clone(), now_ns: boottime_ns() };
        let pin_dir = self.options.pin_dir.clone();
        spawn_blocking(move || {
            let list = || {
                let (nat, _) = FlowTables::open(&pin_dir)?.list(&query, flows.now_ns)?;
                let rest = FlowQuery { limit: query.limit.saturating_sub(nat.len()), ..query };
                let exceptions = Exceptions::open(&pin_dir)?.list(&rest, with_seen)?;
                let exceptions = exceptions.iter().filter_map(|exception| flows.exception(exception));
                let mut views: Vec<FlowView> = nat.iter().map(|flow| flows.nat(flow)).chain(exceptions).collect();
                views.sort_by_key(|view| (view.client, view.vip));
                Ok(views)
            };
            drop(answer.send(list().map_err(failed)));
        });
    }

    /// The indexes of the backends that match `selector`.
    fn indexes(&self, selector: &BackendSelector) -> Result<BTreeSet<u32>, ApiError> {
        let chosen = self.choose(selector)?;
        let is_chosen = |service: u32, at: SocketAddr| {
            chosen.iter().any(|id| id.address == at && id.service == self.service_name(service))
        };
        let entries = self.plan.target.backends.iter();
        let fits =
            entries.filter(|(_, backend)| address(backend).is_some_and(|address| is_chosen(backend.service, address)));
        Ok(fits.map(|(index, _)| *index).collect())
    }

    pub(super) fn look_up(&self, query: LookupQuery, answer: Answer<LookupView>) {
        let image = match self.maps.read() {
            Ok(image) => image,
            Err(error) => {
                drop(answer.send(Err(failed(error))));
                return;
            }
        };
        let flows = Flows { image, names: self.names.clone(), now_ns: boottime_ns() };
        let (pin_dir, slots) = (self.options.pin_dir.clone(), self.maps.shared_slots());
        spawn_blocking(move || {
            let LookupQuery { client, vip, .. } = query;
            let look = || -> Result<LookupView, MapsError> {
                let flow = FlowTables::open(&pin_dir)?.lookup(client, vip, flows.now_ns)?;
                let tables = Exceptions::open(&pin_dir)?;
                let exceptions = tables.lookup(client, vip)?;
                let syn = lookup::syn_place(&flows.image, client, vip).map(|place| tables.syn(place)).transpose()?;
                let known = lookup::Known { flow, exceptions, syn };
                let mut view = lookup(&flows.image, &*slots, &known, &query, |id| flows.names.get(&id).cloned());
                view.entries = known.flow.iter().map(|flow| flows.nat(flow)).collect();
                let entries = exceptions.entries().map(|(kind, entry)| RawException { client, vip, kind, entry });
                view.entries.extend(entries.filter_map(|exception| flows.exception(&exception)));
                Ok(view)
            };
            if answer.send(look().map_err(failed)).is_err() {
                warn!("nobody waits for the answer to a lookup any more");
            }
        });
    }
}

/// Converts table entries to views.
struct Flows {
    image: Image,
    names: BTreeMap<u32, String>,
    now_ns: u64,
}

impl Flows {
    fn nat(&self, flow: &RawFlow) -> FlowView {
        FlowView {
            client: flow.client,
            vip: flow.vip,
            service: self.service(flow.vip),
            backend: flow.backend,
            source: flow.source,
            state: flow.state.name().to_owned(),
            why: "nat".to_owned(),
            age_seconds: None,
            idle_seconds: flow.idle_ns as f64 / 1e9,
        }
    }

    /// `None` for an entry that has outlived its backend: the BPF program treats it as absent.
    fn exception(&self, exception: &RawException) -> Option<FlowView> {
        let RawException { client, vip, kind, entry } = *exception;
        let Exception { flags, .. } = entry;
        let backend = self.image.backends.get(&entry.backend)?;
        (backend.generation == entry.generation).then_some(())?;
        Some(FlowView {
            client,
            vip,
            service: self.service(vip),
            backend: address(backend)?,
            source: client,
            state: kind.state(flags).to_owned(),
            why: kind.why(flags).to_owned(),
            age_seconds: None,
            idle_seconds: self.now_ns.saturating_sub(entry.last_seen_ns) as f64 / 1e9,
        })
    }

    fn service(&self, vip: SocketAddr) -> String {
        let service = self.image.services.get(&vip).and_then(|service| self.names.get(&service.id));
        service.cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}
