//! Answers and refusals as HTTP responses.

use std::{fmt::Display, io};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::{FromRequest, Query, Request, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::{
    background,
    view::types::{ApiError, ErrorCode},
};

impl ErrorCode {
    fn status(self) -> StatusCode {
        match self {
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self)).into_response()
    }
}

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message: message.into() }
}

pub(super) fn not_found(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::NotFound, message: message.into() }
}

fn failed(error: impl Display) -> ApiError {
    ApiError { code: ErrorCode::Failed, message: error.to_string() }
}

/// The parameters of a request, or why they are invalid.
pub(super) fn parameters<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    match query {
        Ok(Query(parameters)) => Ok(parameters),
        Err(rejection) => Err(invalid(format!("{}: see docs/api.md for the parameters", rejection.body_text()))),
    }
}

/// A JSON body, whatever its content type says; an empty one counts as `{}`.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| invalid(format!("the body cannot be read: {}", rejection.body_text())))?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Body).map_err(|error| invalid(format!("the body does not fit: {error}")))
    }
}

/// Makes a document and writes it as JSON, in the background, because it may have thousands of
/// backends.
pub(super) async fn document<T: Send + 'static, D: Serialize>(
    from: T,
    document: impl FnOnce(T) -> Result<D, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let written = background::spawn(move || serde_json::to_vec(&document(from)?).map_err(failed));
    let text = written.await.map_err(failed)??;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Streams documents as they arrive, one JSON object per line, until the sender is dropped.
pub(super) struct JsonLines<T>(pub mpsc::Receiver<T>);

impl<T: Serialize + Send + 'static> IntoResponse for JsonLines<T> {
    fn into_response(self) -> Response {
        let lines = stream::unfold(self.0, async |mut documents| {
            let document = documents.recv().await?;
            let line = serde_json::to_vec(&document).map_err(io::Error::other).map(|mut line| {
                line.push(b'\n');
                Bytes::from(line)
            });
            Some((line, documents))
        });
        ([(header::CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(lines)).into_response()
    }
}
