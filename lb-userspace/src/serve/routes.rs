//! The paths of the admin API, version 1.

use std::collections::BTreeSet;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;

use super::answer::{Body, JsonLines, document, invalid, not_found, parameters};
use crate::{
    agent::handle::AgentHandle,
    state::{NotAServiceName, ServiceName, ServiceSelector},
    view::{
        trace::{TraceQuery, TraceView},
        types::{
            ApiError, BackendSelector, BackendView, Changed, DropsBy, FlowFilter, InterfaceView, LookupQuery,
            LookupView, ServiceView, Snapshot, Status,
        },
    },
};

pub(super) fn router(agent: AgentHandle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/backends", get(backends))
        .route("/v1/flows", get(flows))
        .route("/v1/drops", get(drops))
        .route("/v1/interfaces", get(interfaces))
        .route("/v1/lookup", get(lookup))
        .route("/v1/diff", get(diff))
        .route("/v1/trace", get(trace))
        .route("/v1/snapshot", get(snapshot))
        .route("/v1/backends/drain", post(drain))
        .route("/v1/backends/undrain", post(undrain))
        .route("/v1/backends/weight", post(weight))
        .route("/v1/reload", post(reload))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(agent)
}

type JsonAnswer<T> = Result<Json<T>, ApiError>;
/// A document that may be large.
type Document = Result<Response, ApiError>;
type Parameters<T> = Result<Query<T>, QueryRejection>;

async fn snapshot(State(agent): State<AgentHandle>) -> Document {
    document(agent.snapshot().await?, Ok).await
}

async fn status(State(agent): State<AgentHandle>) -> JsonAnswer<Status> {
    Ok(Json(agent.scrape().await?.status))
}

async fn services(State(agent): State<AgentHandle>) -> Document {
    document(agent.snapshot().await?, |snapshot| Ok(snapshot.services)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendsQuery {
    service: Option<String>,
}

async fn backends(State(agent): State<AgentHandle>, query: Parameters<BackendsQuery>) -> Document {
    let BackendsQuery { service } = parameters(query)?;
    let backends = move |snapshot: Snapshot| match service {
        Some(service) => backends_of(snapshot, &service),
        None => Ok(snapshot.backends),
    };
    document(agent.snapshot().await?, backends).await
}

fn backends_of(snapshot: Snapshot, service: &str) -> Result<Vec<BackendView>, ApiError> {
    let selector: ServiceSelector = service.parse().map_err(|error: NotAServiceName| invalid(error.to_string()))?;
    let mut names: BTreeSet<ServiceName> = snapshot.services.iter().map(ServiceView::full_name).collect();
    names.extend(snapshot.backends.iter().map(BackendView::service_name));
    if !names.iter().any(|name| selector.admits(name)) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let known =
            if names.is_empty() { "there are none".to_owned() } else { format!("there are: {}", names.join(", ")) };
        return Err(not_found(format!("no service is named {service:?}; {known}")));
    }
    Ok(snapshot.backends.into_iter().filter(|backend| selector.admits(&backend.service_name())).collect())
}

async fn flows(State(agent): State<AgentHandle>, query: Parameters<FlowFilter>) -> Document {
    let filter = parameters(query)?;
    document(agent.flows(filter).await?, Ok).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropsQuery {
    #[serde(default)]
    by: DropsBy,
}

async fn drops(State(agent): State<AgentHandle>, query: Parameters<DropsQuery>) -> Document {
    let DropsQuery { by } = parameters(query)?;
    let drops = move |snapshot: Snapshot| match by {
        DropsBy::Service => Ok(snapshot.drops_by_service),
        DropsBy::Interface => Ok(snapshot.drops),
    };
    document(agent.snapshot().await?, drops).await
}

async fn interfaces(State(agent): State<AgentHandle>) -> JsonAnswer<Vec<InterfaceView>> {
    Ok(Json(agent.snapshot().await?.interfaces))
}

async fn lookup(State(agent): State<AgentHandle>, query: Parameters<LookupQuery>) -> JsonAnswer<LookupView> {
    let query = parameters(query)?;
    let LookupQuery { client, vip, .. } = query;
    if client.is_ipv4() != vip.is_ipv4() {
        return Err(invalid(format!("client {client} and vip {vip} are of different families")));
    }
    Ok(Json(agent.lookup(query).await?))
}

async fn diff(State(agent): State<AgentHandle>) -> Document {
    document(agent.diff().await?, Ok).await
}

async fn trace(
    State(agent): State<AgentHandle>,
    query: Parameters<TraceQuery>,
) -> Result<JsonLines<TraceView>, ApiError> {
    let query = parameters(query)?;
    if let Some(mistake) = query.mistake() {
        return Err(invalid(mistake));
    }
    Ok(JsonLines(agent.trace(query).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    backend: BackendSelector,
}

async fn drain(State(agent): State<AgentHandle>, Body(chosen): Body<Chosen>) -> JsonAnswer<Changed> {
    let backend = named(chosen.backend)?;
    Ok(Json(agent.drain(backend).await?))
}

async fn undrain(State(agent): State<AgentHandle>, Body(chosen): Body<Chosen>) -> JsonAnswer<Changed> {
    let backend = named(chosen.backend)?;
    Ok(Json(agent.undrain(backend).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightOf {
    backend: BackendSelector,
    /// `null` removes the override; leaving the field out is a mistake, not a removal.
    #[serde(deserialize_with = "Option::deserialize")]
    weight: Option<u32>,
}

async fn weight(State(agent): State<AgentHandle>, Body(of): Body<WeightOf>) -> JsonAnswer<Changed> {
    let backend = named(of.backend)?;
    Ok(Json(agent.set_weight(backend, of.weight).await?))
}

/// Refuses an empty selector, which would match everything.
fn named(backend: BackendSelector) -> Result<BackendSelector, ApiError> {
    if backend.0.trim().is_empty() {
        return Err(invalid("`backend` is empty; name one as SERVICE/ADDRESS:PORT, ADDRESS:PORT or ADDRESS"));
    }
    Ok(backend)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ReloadRequest {
    #[serde(default)]
    accept_loss: bool,
}

async fn reload(State(agent): State<AgentHandle>, Body(request): Body<ReloadRequest>) -> JsonAnswer<Changed> {
    Ok(Json(agent.reload(request.accept_loss).await?))
}

async fn no_such_path(uri: Uri) -> ApiError {
    not_found(format!("the API has no path {}; see docs/api.md", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = invalid(format!("{} does not take {method}; see docs/api.md", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, Json(error)).into_response()
}
