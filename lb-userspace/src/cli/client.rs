//! Queries the agent by HTTP over its unix socket.

use std::{io, marker::PhantomData, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::view::types::{ApiError, ErrorCode};

/// The time-out of a request.
const PATIENCE: Duration = Duration::from_secs(15);

const START: &str = "start it with `systemctl start weir`, or `weir agent --config /etc/weir/weir.yaml`";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the agent isn't running: there is no {path}\n{START}; if it uses another socket, name that with --socket")]
    NoSocket { path: String },
    #[error("the agent isn't running: nobody answers on {path}, which an agent that was killed left behind\n{START}")]
    Dead { path: String },
    #[error("permission denied on {path}: the API is for root only; try again with sudo")]
    Denied { path: String },
    #[error("cannot connect to the agent at {path}: {source}")]
    Unreachable { path: String, source: io::Error },
    #[error("the agent at {path} does not answer within {PATIENCE:?}; its log says why (`journalctl -u weir`)")]
    Silent { path: String },
    #[error("the agent at {path} broke off: {source}")]
    Broken { path: String, source: hyper::Error },
    #[error("what answers at {path} is not this version's agent: {why}")]
    Foreign { path: String, why: String },
    #[error(transparent)]
    Refused(ApiError),
}

impl Failure {
    /// Whether another agent, or the same one later, could answer.
    pub fn may_pass(&self) -> bool {
        match self {
            Failure::Refused(error) => error.code == ErrorCode::Unavailable,
            Failure::Denied { .. } | Failure::Foreign { .. } => false,
            _ => true,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Like [`Client::get`], with parameters; those that are `None` are left out.
    pub async fn get_with<T: DeserializeOwned>(&self, path: &str, parameters: &impl Serialize) -> Result<T, Failure> {
        let query = serde_urlencoded::to_string(parameters).map_err(|error| self.foreign(error))?;
        self.ask(Method::GET, &format!("{path}?{query}"), Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| self.foreign(error))?;
        self.ask(Method::POST, path, Bytes::from(body)).await
    }

    /// Like [`Client::get_with`], for an answer of documents that come one per line over time.
    pub async fn lines<T>(&self, path: &str, parameters: &impl Serialize) -> Result<Lines<T>, Failure> {
        let query = serde_urlencoded::to_string(parameters).map_err(|error| self.foreign(error))?;
        let path = format!("{path}?{query}");
        match tokio::time::timeout(PATIENCE, self.begin(Method::GET, &path, Bytes::new())).await {
            Ok(body) => Ok(Lines { client: self.clone(), body: body?, read: Vec::new(), document: PhantomData }),
            Err(_) => Err(Failure::Silent { path: self.path() }),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        match tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Silent { path: self.path() }),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let body = self.begin(method, path, body).await?;
        let body = body.collect().await.map_err(|source| self.broken(source))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.foreign(error))
    }

    /// Sends a request. Returns the answer's body, or the agent's refusal as an error.
    async fn begin(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|source| self.broken(source))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "weir")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.foreign(error))?;
        // The task drives the connection; if it fails, the request fails too, and the error is
        // reported there.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|source| self.broken(source))?;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let body = body.collect().await.map_err(|source| self.broken(source))?.to_bytes();
        match serde_json::from_slice(&body) {
            Ok(refusal) => Err(Failure::Refused(refusal)),
            Err(_) => Err(self.foreign(format!("it answers {status}"))),
        }
    }

    fn broken(&self, source: hyper::Error) -> Failure {
        Failure::Broken { path: self.path(), source }
    }

    fn unreachable(&self, source: io::Error) -> Failure {
        let path = self.path();
        match source.kind() {
            io::ErrorKind::NotFound => Failure::NoSocket { path },
            io::ErrorKind::ConnectionRefused => Failure::Dead { path },
            io::ErrorKind::PermissionDenied => Failure::Denied { path },
            _ => Failure::Unreachable { path, source },
        }
    }

    fn foreign(&self, why: impl ToString) -> Failure {
        Failure::Foreign { path: self.path(), why: why.to_string() }
    }

    /// The process that listens on the socket; `None` if the kernel does not tell it, as for one in
    /// another PID namespace.
    pub async fn agent_pid(&self) -> Option<u32> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        let pid = stream.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    pub fn path(&self) -> String {
        self.socket.display().to_string()
    }
}

/// An answer that comes line by line.
pub struct Lines<T> {
    client: Client,
    body: Incoming,
    /// The beginning of a line that is not complete yet.
    read: Vec<u8>,
    document: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; `None` when the agent ends the answer. If the future is dropped before it is
    /// ready, no line is lost.
    pub async fn next(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|error| self.client.foreign(error));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
                Some(Err(source)) => return Err(self.client.broken(source)),
            }
        }
    }
}
