//! HTTP: one request from inside a namespace, or many to the agent's API over one connection.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::Runtime,
};

use crate::netns::Netns;

pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// `GET path` on a connection of its own.
pub fn get(netns: &Netns, to: SocketAddr, path: &str, patience: Duration) -> Result<Answer> {
    let path = path.to_owned();
    let what = format!("GET http://{to}{path} in {}", netns.name);
    netns
        .run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(patience, fetch(to, &path))
                    .await
                    .with_context(|| format!("not within {patience:?}"))?
            })
        })?
        .context(what)
}

async fn fetch(to: SocketAddr, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", to.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection ends first where the server closes it after the answer.
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

/// A connection to the agent's API that is kept, so that a request costs no more than the agent's
/// answer.
pub struct Api {
    runtime: Runtime,
    sender: http1::SendRequest<Full<Bytes>>,
    patience: Duration,
}

impl Api {
    /// `patience` is for each answer.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // A failure of the connection is also one of the request that waits for it.
            tokio::spawn(connection);
            Ok::<_, anyhow::Error>(sender)
        });
        let sender = sender.with_context(|| format!("can't connect to {}", socket.display()))?;
        Ok(Self { runtime, sender, patience })
    }

    /// The answer's body.
    pub fn get(&mut self, path: &str) -> Result<Bytes> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// The answer's body; `document` is JSON.
    pub fn post(&mut self, path: &str, document: &serde_json::Value) -> Result<Bytes> {
        self.ask(Method::POST, path, Bytes::from(document.to_string()))
    }

    fn ask(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let Self { runtime, sender, patience } = self;
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "weir")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
            Ok(body)
        };
        let answer = runtime.block_on(async { tokio::time::timeout(*patience, exchange).await });
        answer.with_context(|| format!("{what}: not within {patience:?}"))?.context(what)
    }
}
