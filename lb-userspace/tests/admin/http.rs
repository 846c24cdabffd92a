//! The API servers as a program other than `weir` meets them, in front of a fake agent (agent.rs
//! says why).

use crate::agent::{FakeAgent, snapshot};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

async fn exchange<S>(stream: S, method: &str, path: &str, body: &str) -> (StatusCode, String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "x")
        .body(Full::new(bytes::Bytes::from(body.to_owned())));
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn ask(agent: &FakeAgent, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let (status, body) = exchange(UnixStream::connect(&agent.socket).await.unwrap(), method, path, body).await;
    (status, serde_json::from_str(&body).unwrap())
}

async fn fetch(agent: &FakeAgent, path: &str) -> (StatusCode, String) {
    exchange(TcpStream::connect(agent.http).await.unwrap(), "GET", path, "").await
}

#[tokio::test]
async fn every_document_is_served() {
    let agent = FakeAgent::start(snapshot()).await;
    for path in [
        "/v1/status",
        "/v1/services",
        "/v1/backends",
        "/v1/backends?service=web",
        "/v1/flows?client=198.51.100.7&limit=5",
        "/v1/drops",
        "/v1/drops?by=interface",
        "/v1/interfaces",
        "/v1/lookup?client=198.51.100.7:40000&vip=192.0.2.10:80",
        "/v1/lookup?client=198.51.100.7:40000&vip=192.0.2.10:80&sequence=7",
        "/v1/flows?seen=true",
        "/v1/lookup?client=%5B2001:db8:1::7%5D:40000&vip=%5B2001:db8::10%5D:80",
        "/v1/diff",
        "/v1/snapshot",
    ] {
        let (status, body) = ask(&agent, "GET", path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
    }
    let (_, flows) = ask(&agent, "GET", "/v1/flows?client=198.51.100.7", "").await;
    assert_eq!(flows.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_requests_get_a_reason_and_change_nothing() {
    let agent = FakeAgent::start(snapshot()).await;
    let (_, before) = ask(&agent, "GET", "/v1/snapshot", "").await;
    let cases = [
        ("GET", "/v1/nothing", "", 404, "not-found", "/v1/nothing"),
        ("GET", "/v1/backends?service=wbe", "", 404, "not-found", "there are: web"),
        ("GET", "/v1/backends?servcie=web", "", 400, "invalid", "servcie"),
        ("GET", "/v1/flows?client=nobody", "", 400, "invalid", "IP address"),
        ("GET", "/v1/lookup?client=198.51.100.7:1", "", 400, "invalid", "vip"),
        ("GET", "/v1/lookup?client=198.51.100.7:1&vip=[::1]:80", "", 400, "invalid", "famil"),
        ("GET", "/v1/trace?client=nobody", "", 400, "invalid", "no address"),
        ("GET", "/v1/trace?client=198.51.100.7&vip=::1", "", 400, "invalid", "famil"),
        ("GET", "/v1/trace?rate=0", "", 400, "invalid", "rate"),
        ("POST", "/v1/status", "", 405, "invalid", "POST"),
        ("GET", "/v1/backends/drain", "", 405, "invalid", "GET"),
        ("POST", "/v1/backends/drain", "", 400, "invalid", "backend"),
        ("POST", "/v1/backends/drain", "{\"backend\": \" \"}", 400, "invalid", "empty"),
        ("POST", "/v1/backends/drain", "{\"backend\": \"10.9.9.9\"}", 404, "not-found", "10.9.9.9"),
        ("POST", "/v1/backends/weight", "{\"backend\": \"web/10.2.0.11:8080\"}", 400, "invalid", "weight"),
        ("POST", "/v1/backends/weight", "{\"backend\": \"web/10.2.0.11:8080\", \"weight\": -1}", 400, "invalid", "-1"),
        ("POST", "/v1/reload", "{\"acceptloss\": true}", 400, "invalid", "acceptloss"),
        ("POST", "/v1/reload", "not json", 400, "invalid", "body"),
    ];
    for (method, path, body, status, code, message) in cases {
        let (got, answer) = ask(&agent, method, path, body).await;
        assert_eq!((got.as_u16(), answer["code"].as_str()), (status, Some(code)), "{method} {path} {body}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(message), "{method} {path} {body}: {answer}");
    }
    assert_eq!(ask(&agent, "GET", "/v1/snapshot", "").await.1, before);
}

#[tokio::test]
async fn changes_answer_with_what_they_did() {
    let agent = FakeAgent::start(snapshot()).await;
    let of = json!({ "backend": "web/10.2.0.11:8080" }).to_string();
    let (status, drained) = ask(&agent, "POST", "/v1/backends/drain", &of).await;
    assert_eq!((status, &drained["backends"][0]["admin"]), (StatusCode::OK, &json!("draining")));
    let weight = json!({ "backend": "web/10.2.0.11:8080", "weight": null }).to_string();
    assert_eq!(ask(&agent, "POST", "/v1/backends/weight", &weight).await.0, StatusCode::OK);
    let (_, reloaded) = ask(&agent, "POST", "/v1/reload", "").await;
    assert_eq!(reloaded["messages"][0], "reloaded, accept loss: false");
}

#[tokio::test]
async fn metrics_and_probes_are_served_over_tcp() {
    let agent = FakeAgent::start(snapshot()).await;
    assert_eq!(fetch(&agent, "/metrics").await, (StatusCode::OK, "weir_backends 2\n# EOF\n".to_owned()));
    assert_eq!(fetch(&agent, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    assert_eq!(fetch(&agent, "/readyz").await, (StatusCode::OK, "ok\n".to_owned()));
    assert_eq!(fetch(&agent, "/v1/status").await.0, StatusCode::NOT_FOUND);

    let mut unsynced = snapshot();
    unsynced.status.sync.last_success_at = 0.0;
    let agent = FakeAgent::start(unsynced).await;
    assert_eq!(fetch(&agent, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fetch(&agent, "/healthz").await.0, StatusCode::OK);
}
