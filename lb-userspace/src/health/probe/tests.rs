//! Probes of real servers on loopback, in both families.

use std::future::Future;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};

use super::*;

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Serves each connection with `serve`, and returns the server's address and task.
async fn server<F, S>(at: &str, serve: S) -> (SocketAddr, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream) -> F + Send + 'static,
{
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    (address, serving)
}

/// Reads the request up to the empty line.
async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// Answers every request with `answer` and closes.
async fn answering(at: &str, answer: &'static str) -> (SocketAddr, JoinHandle<()>) {
    server(at, move |mut stream| async move {
        request(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

fn check(probe: Probe) -> HealthCheck {
    HealthCheck { probe, interval: Duration::from_secs(1), timeout: Duration::from_millis(300), fall: 3, rise: 2 }
}

fn http() -> HealthCheck {
    check(Probe::Http(HttpProbe { path: "/healthz".to_owned(), host: None, expect: (200, 399) }))
}

fn failure(outcome: &Outcome) -> FailureKind {
    match outcome {
        Outcome::Failed { reason, .. } => *reason,
        Outcome::Ok { .. } => panic!("the probe should have failed: {outcome:?}"),
    }
}

fn is_silent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed { is_silent: true, .. })
}

#[tokio::test]
async fn host_that_does_not_answer_at_all_is_silent() {
    for at in LOOPBACKS {
        // The listener's queue of connections is full: the kernel answers no further SYN.
        let socket = if at.starts_with('1') { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind(at.parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(timeout(Duration::from_millis(50), TcpStream::connect(address)).await);
        }
        for check in [check(Probe::Tcp), http()] {
            let outcome = probe(address, &check).await;
            assert_eq!(failure(&outcome), FailureKind::Timeout, "{outcome:?}");
            assert!(is_silent(&outcome), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn open_port_passes_a_tcp_probe_and_its_program_sees_no_connection() {
    for at in LOOPBACKS {
        let listener = TcpListener::bind(at).await.unwrap();
        // The kernel delays the acknowledgement by 200 ms: on a busy machine the reset may be late.
        let mut is_seen = true;
        for _ in 0..5 {
            let outcome = probe(listener.local_addr().unwrap(), &check(Probe::Tcp)).await;
            assert!(matches!(&outcome, Outcome::Ok { detail, .. } if detail == "connected"), "{outcome:?}");
            is_seen = timeout(Duration::from_millis(100), listener.accept()).await.is_ok();
            if !is_seen {
                break;
            }
        }
        assert!(!is_seen, "{at}");
        // The port's queue of connections is free again.
        drop(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        timeout(Duration::from_secs(5), listener.accept()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn closed_port_is_refused_at_once() {
    for at in LOOPBACKS {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for check in [check(Probe::Tcp), http()] {
            let outcome = probe(address, &check).await;
            assert_eq!(failure(&outcome), FailureKind::Refused);
            assert!(!is_silent(&outcome), "a refusal is an answer");
            assert!(outcome.duration() < Duration::from_millis(100), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn http_probe_sends_a_whole_request_and_accepts_the_expected_status() {
    for at in LOOPBACKS {
        let (heard, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let (address, _serving) = server(at, move |mut stream| {
            let heard = heard.clone();
            async move {
                heard.send(request(&mut stream).await).unwrap();
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        })
        .await;
        let outcome = probe(address, &http()).await;
        assert!(matches!(&outcome, Outcome::Ok { detail, .. } if detail == "status 204"), "{outcome:?}");
        let request = requests.recv().await.unwrap().to_lowercase();
        assert!(request.starts_with("get /healthz http/1.1\r\n"), "{request}");
        let agent = concat!("user-agent: weir-health/", env!("CARGO_PKG_VERSION"));
        for line in [format!("host: {address}"), agent.to_owned(), "connection: close".to_owned()] {
            assert_eq!(request.lines().filter(|there| *there == line).count(), 1, "{line} in {request}");
        }

        let named = HttpProbe { path: "/".to_owned(), host: Some("example.org".to_owned()), expect: (200, 399) };
        probe(address, &check(Probe::Http(named))).await;
        assert!(requests.recv().await.unwrap().to_lowercase().contains("\r\nhost: example.org\r\n"));
    }
}

#[tokio::test]
async fn unexpected_status_fails_and_is_named() {
    for at in LOOPBACKS {
        let (address, _serving) = answering(at, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let outcome = probe(address, &http()).await;
        assert_eq!(failure(&outcome), FailureKind::Status);
        assert_eq!(outcome.detail(), "status 503, expected 200-399");
    }
}

#[tokio::test]
async fn body_is_not_waited_for() {
    let (address, _serving) = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let outcome = probe(address, &http()).await;
    assert!(matches!(outcome, Outcome::Ok { .. }), "{outcome:?}");
}

#[tokio::test]
async fn server_that_does_not_answer_times_out() {
    for at in LOOPBACKS {
        let (address, _serving) = server(at, |stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let outcome = probe(address, &http()).await;
        assert_eq!(failure(&outcome), FailureKind::Timeout);
        assert!(!is_silent(&outcome), "its host is there");
        assert_eq!(outcome.detail(), "no answer within 300ms");
        assert!(outcome.duration() < Duration::from_millis(400), "{outcome:?}");
    }
}

#[tokio::test]
async fn slow_drip_ends_at_the_timeout_of_the_whole_probe() {
    let (address, _serving) = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: yes\r\ncontent-length: 0\r\n\r\n" {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let outcome = probe(address, &http()).await;
    assert_eq!(failure(&outcome), FailureKind::Timeout);
    assert!(outcome.duration() < Duration::from_millis(400), "{outcome:?}");
}

#[tokio::test]
async fn header_without_end_is_cut_off() {
    let (address, _serving) = server("127.0.0.1:0", |mut stream| async move {
        request(&mut stream).await;
        let mut endless = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while endless.is_ok() {
            endless = stream.write_all(&[b'x'; 4096]).await;
        }
    })
    .await;
    assert_eq!(failure(&probe(address, &http()).await), FailureKind::Protocol);
}

#[tokio::test]
async fn garbage_and_an_early_close_are_protocol_failures() {
    for at in LOOPBACKS {
        for answer in ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "", "HTTP/1.1 200 O"] {
            let (address, _serving) = answering(at, answer).await;
            let outcome = probe(address, &http()).await;
            assert_eq!(failure(&outcome), FailureKind::Protocol, "{answer:?}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn reset_in_the_middle_is_a_reset() {
    for at in LOOPBACKS {
        let (address, _serving) = server(at, |mut stream| async move {
            request(&mut stream).await;
            stream.set_zero_linger().unwrap();
        })
        .await;
        let outcome = probe(address, &http()).await;
        assert_eq!(failure(&outcome), FailureKind::Reset, "{outcome:?}");
    }
}

#[test]
fn errors_of_the_kernel_have_their_kinds() {
    let kinds = [
        (libc::EHOSTUNREACH, FailureKind::Unreachable),
        (libc::ENETUNREACH, FailureKind::Unreachable),
        (libc::ETIMEDOUT, FailureKind::Timeout),
        (libc::EMFILE, FailureKind::Local),
        (libc::EADDRNOTAVAIL, FailureKind::Local),
        (libc::EPERM, FailureKind::Other),
    ];
    for (errno, kind) in kinds {
        assert_eq!(io_failure("connect", &io::Error::from_raw_os_error(errno)).reason, kind, "{errno}");
    }
}
