//! Probes one backend once: opens a TCP connection, or sends an HTTP request over one.

use std::{borrow::Cow, io, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use crate::model::{HealthCheck, HttpProbe, Probe};

/// The result of a probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `detail` describes the answer: `connected`, or the HTTP status.
    Ok { duration: Duration, detail: Cow<'static, str> },
    Failed {
        duration: Duration,
        reason: FailureKind,
        /// The backend did not answer at all, not even with a refusal.
        is_silent: bool,
        detail: Cow<'static, str>,
    },
}

impl Outcome {
    /// Time from the first packet to the result.
    pub fn duration(&self) -> Duration {
        match self {
            Outcome::Ok { duration, .. } | Outcome::Failed { duration, .. } => *duration,
        }
    }

    /// A short description of the result.
    pub fn detail(&self) -> &Cow<'static, str> {
        match self {
            Outcome::Ok { detail, .. } | Outcome::Failed { detail, .. } => detail,
        }
    }
}

/// Why a probe failed; the metrics use these kinds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureKind {
    /// No answer, or no complete answer, in time.
    Timeout,
    Refused,
    /// No route, or an ICMP error.
    Unreachable,
    Reset,
    /// An HTTP status outside the expected range.
    Status,
    /// The answer is not HTTP, or the connection was closed before the answer was complete.
    Protocol,
    /// This node lacked a port, a file descriptor or memory: no fault of the backend.
    Local,
    Other,
}

impl FailureKind {
    pub const fn name(self) -> &'static str {
        match self {
            FailureKind::Timeout => "timeout",
            FailureKind::Refused => "refused",
            FailureKind::Unreachable => "unreachable",
            FailureKind::Reset => "reset",
            FailureKind::Status => "status",
            FailureKind::Protocol => "protocol",
            FailureKind::Local => "local",
            FailureKind::Other => "other",
        }
    }
}

/// Probes the server at `address`. The time-out of `check` covers the whole probe.
pub async fn probe(address: SocketAddr, check: &HealthCheck) -> Outcome {
    let began = Instant::now();
    let deadline = began + check.timeout;
    let connected =
        timeout_at(deadline, connect(address, &check.probe)).await.unwrap_or_else(|_| Err(timed_out(check.timeout)));
    let stream = match connected {
        Ok(stream) => stream,
        Err(ProbeFailure { reason, detail }) => {
            let is_silent = matches!(reason, FailureKind::Timeout | FailureKind::Unreachable);
            return Outcome::Failed { duration: began.elapsed(), reason, is_silent, detail: detail.into() };
        }
    };
    let answered = match &check.probe {
        Probe::Tcp => Ok(Cow::Borrowed("connected")),
        // Boxed, so that the futures of probes that only connect stay small: there may be a
        // thousand at once.
        Probe::Http(http) => {
            let answered = timeout_at(deadline, Box::pin(ask(address, stream, http))).await;
            answered.unwrap_or_else(|_| Err(timed_out(check.timeout))).map(Cow::Owned)
        }
    };
    let duration = began.elapsed();
    match answered {
        Ok(detail) => Outcome::Ok { duration, detail },
        Err(ProbeFailure { reason, detail }) => {
            Outcome::Failed { duration, reason, is_silent: false, detail: detail.into() }
        }
    }
}

struct ProbeFailure {
    reason: FailureKind,
    detail: String,
}

fn timed_out(after: Duration) -> ProbeFailure {
    ProbeFailure {
        reason: FailureKind::Timeout,
        detail: format!("no answer within {}", humantime::format_duration(after)),
    }
}

/// Opens a connection that is reset when it is dropped: with an orderly close, thousands of probes
/// would leave thousands of ports in TIME_WAIT.
///
/// A probe that only connects delays the last acknowledgement of the handshake, so that the reset
/// is sent instead. The server's SYN-ACK is all that the probe needs. Without the acknowledgement,
/// the server's program is not woken for a connection that ends at once, and each side handles one
/// packet less.
async fn connect(address: SocketAddr, probe: &Probe) -> Result<TcpStream, ProbeFailure> {
    let failed = |error| io_failure("connect", &error);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    socket.set_zero_linger().map_err(failed)?;
    if matches!(probe, Probe::Tcp) {
        // If this fails, the probe has the same result.
        SockRef::from(&socket).set_tcp_quickack(false).ok();
    }
    socket.connect(address).await.map_err(failed)
}

/// The smallest limit that hyper allows. A longer header is a protocol error, so that no backend
/// can make the agent read forever.
const READ_BYTES: usize = 8192;

/// Sends the request, and returns the status as text if it is an expected one. The body is not
/// read.
async fn ask(address: SocketAddr, stream: TcpStream, http: &HttpProbe) -> Result<String, ProbeFailure> {
    let host = http.host.clone().unwrap_or_else(|| address.to_string());
    let request = Request::get(&http.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("weir-health/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ProbeFailure { reason: FailureKind::Other, detail: format!("GET {}: {error}", http.path) })?;
    let failed = |error| http_failure(&error);
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(READ_BYTES).handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut connection = pin!(connection);
    let mut response = pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // The connection future does the I/O. If it ends first, `response` is ready, too.
        ended = &mut connection => match ended {
            Ok(()) => response.await,
            Err(error) => Err(error),
        },
    };
    let status = response.map_err(failed)?.status().as_u16();
    let (first, last) = http.expect;
    if (first..=last).contains(&status) {
        return Ok(format!("status {status}"));
    }
    Err(ProbeFailure { reason: FailureKind::Status, detail: format!("status {status}, expected {first}-{last}") })
}

fn http_failure(error: &hyper::Error) -> ProbeFailure {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return io_failure("http", io);
        }
        cause = inner.source();
    }
    let detail = if error.is_incomplete_message() || error.is_canceled() {
        "closed before a whole answer".to_owned()
    } else {
        format!("not an HTTP answer: {error}")
    };
    ProbeFailure { reason: FailureKind::Protocol, detail }
}

fn io_failure(doing: &str, error: &io::Error) -> ProbeFailure {
    use io::ErrorKind;
    let reason = match error.kind() {
        ErrorKind::ConnectionRefused => FailureKind::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => FailureKind::Reset,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => FailureKind::Unreachable,
        ErrorKind::TimedOut => FailureKind::Timeout,
        ErrorKind::UnexpectedEof => FailureKind::Protocol,
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse | ErrorKind::OutOfMemory => FailureKind::Local,
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::EAGAIN) => FailureKind::Local,
            Some(libc::EHOSTDOWN) => FailureKind::Unreachable,
            _ => FailureKind::Other,
        },
    };
    ProbeFailure { reason, detail: format!("{doing}: {error}") }
}

#[cfg(test)]
mod tests;
