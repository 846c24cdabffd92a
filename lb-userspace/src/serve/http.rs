//! Metrics and the agent's own health over TCP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::error::ServeError;
use crate::{
    agent::handle::AgentHandle,
    background,
    metrics::CONTENT_TYPE,
    view::{
        ready::not_ready,
        types::{ApiError, ErrorCode, Snapshot},
    },
};

/// An agent that takes longer to answer is not healthy.
const PATIENCE: Duration = Duration::from_secs(3);

/// The bound listener.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    /// The address that was bound; for port 0, with the port that the kernel chose.
    pub address: SocketAddr,
}

impl HttpServer {
    pub async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Answers `/metrics`, `/healthz` and `/readyz` until `shutdown` is cancelled. `encode` makes
    /// the text of the metrics (`metrics::Metrics::encode`).
    pub async fn serve(
        self,
        agent: AgentHandle,
        encode: impl Fn(&Snapshot) -> String + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(HttpState { agent, encode: Arc::new(encode) });
        axum::serve(self.listener, app)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
            .map_err(|source| ServeError::Stopped { at: self.address.to_string(), source })
    }
}

#[derive(Clone)]
struct HttpState {
    agent: AgentHandle,
    encode: Arc<dyn Fn(&Snapshot) -> String + Send + Sync>,
}

impl HttpState {
    /// Whether the owner of the maps answers.
    async fn ping(&self) -> Result<(), ApiError> {
        in_time(self.agent.ping()).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        in_time(self.agent.scrape()).await
    }

    async fn state(&self) -> Result<Snapshot, ApiError> {
        in_time(self.agent.state()).await
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let late = |_| ApiError { code: ErrorCode::Unavailable, message: format!("no answer within {PATIENCE:?}") };
    timeout(PATIENCE, answer).await.map_err(late)?
}

async fn metrics(State(shared): State<HttpState>) -> Response {
    match shared.snapshot().await {
        Ok(snapshot) => match background::spawn(move || (shared.encode)(&snapshot)).await {
            Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
            Err(error) => unavailable(&format!("the metrics could not be encoded: {error}")),
        },
        Err(error) => unavailable(&format!("the agent does not answer: {error}")),
    }
}

async fn healthz(State(shared): State<HttpState>) -> Response {
    match shared.ping().await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => unavailable(&format!("the agent does not answer: {error}")),
    }
}

async fn readyz(State(shared): State<HttpState>) -> Response {
    match shared.state().await {
        Ok(state) => match not_ready(&state) {
            None => "ok\n".into_response(),
            Some(why) => unavailable(&why),
        },
        Err(error) => unavailable(&format!("the agent does not answer: {error}")),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}
