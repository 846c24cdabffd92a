//! One HTTP request from inside a namespace.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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
