//! Queries about single flows: listing them, and looking up where a flow goes. There may be a
//! million flows, so these functions can be slow.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    path::Path,
};

use lb_common::{backend::Backend, exception::Exception};

use super::lookup::{Known, lookup, syn_place};
use crate::{
    clock::boottime_ns,
    dataplane::{
        image::{Image, Slots},
        maps::MapsError,
        plan::address,
        programmed::Programmed,
        tables::{
            FlowQuery,
            exceptions::{Exceptions, RawException},
            nat::{NatTables, RawFlow},
        },
    },
    state::BackendId,
    view::types::{FlowFilter, FlowView, LookupQuery, LookupView},
};

const DEFAULT_FLOWS: usize = 1000;

/// The flows that match `filter`; `chosen` are the backends that its selector names.
pub fn list_flows(
    pin_dir: &Path,
    programmed: &Programmed,
    filter: &FlowFilter,
    chosen: Option<Vec<BackendId>>,
) -> Result<Vec<FlowView>, MapsError> {
    let flows = FlowViews { image: programmed.image(), programmed, now_ns: boottime_ns() };
    let backends = chosen.map(|chosen| flows.indexes(chosen));
    let limit = filter.limit.unwrap_or(DEFAULT_FLOWS);
    let query = FlowQuery { client: filter.client, vip: filter.vip, backends, limit };
    let (nat, _) = NatTables::open(pin_dir)?.list(&query, flows.now_ns)?;
    let rest = FlowQuery { limit: query.limit.saturating_sub(nat.len()), ..query };
    let exceptions = Exceptions::open(pin_dir)?.list(&rest, filter.seen)?;
    let exceptions = exceptions.iter().filter_map(|exception| flows.exception(exception));
    let mut views: Vec<FlowView> = nat.iter().map(|flow| flows.nat(flow)).chain(exceptions).collect();
    views.sort_by_key(|view| (view.client, view.vip));
    Ok(views)
}

/// Where a flow goes according to `image`, which was just read from the maps.
pub fn lookup_flow(
    pin_dir: &Path,
    programmed: &Programmed,
    image: Image,
    slots: &dyn Slots,
    query: &LookupQuery,
) -> Result<LookupView, MapsError> {
    let flows = FlowViews { image, programmed, now_ns: boottime_ns() };
    let LookupQuery { client, vip, .. } = *query;
    let flow = NatTables::open(pin_dir)?.lookup(client, vip, flows.now_ns)?;
    let tables = Exceptions::open(pin_dir)?;
    let exceptions = tables.lookup(client, vip)?;
    let syn = syn_place(&flows.image, client, vip).map(|place| tables.syn(place)).transpose()?;
    let known = Known { flow, exceptions, syn };
    let name = |id| programmed.part(id).map(|part| part.name.to_string());
    let mut view = lookup(&flows.image, slots, &known, query, name);
    view.entries = known.flow.iter().map(|flow| flows.nat(flow)).collect();
    let entries = exceptions.entries().map(|(kind, entry)| RawException { client, vip, kind, entry });
    view.entries.extend(entries.filter_map(|exception| flows.exception(&exception)));
    Ok(view)
}

/// Converts table entries to views.
struct FlowViews<'a> {
    image: Image,
    /// Gives the names of services.
    programmed: &'a Programmed,
    now_ns: u64,
}

impl FlowViews<'_> {
    /// The indexes of these backends.
    fn indexes(&self, chosen: Vec<BackendId>) -> BTreeSet<u32> {
        let chosen: HashSet<BackendId> = chosen.into_iter().collect();
        let is_chosen = |backend: &Backend| {
            let service = self.programmed.name(backend.service);
            address(backend).is_some_and(|address| chosen.contains(&BackendId { service, address }))
        };
        self.image.backends.iter().filter(|(_, backend)| is_chosen(backend)).map(|(index, _)| *index).collect()
    }

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
        let service = self.image.services.get(&vip).and_then(|service| self.programmed.part(service.id));
        service.map_or_else(|| "unknown".to_owned(), |part| part.name.to_string())
    }
}
