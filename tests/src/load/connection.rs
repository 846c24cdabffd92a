//! One connection of the load.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Book, Mode, Outcome, Spec, next_port};

/// Connects, asks as the mode says, and writes down what came of it.
pub(super) async fn talk(spec: &Spec, book: &Book) {
    let socket = match bound_socket(spec.target) {
        Ok(socket) => socket,
        Err(error) => {
            let place = book.open(spec.target, spec.target);
            book.close(place, Outcome::Other(format!("no local port: {error}")));
            return;
        }
    };
    let local = socket.local_addr().unwrap_or(spec.target);
    let place = book.open(local, spec.target);
    let outcome = match timeout(spec.timeout, socket.connect(spec.target)).await {
        Err(_) => Outcome::Timeout,
        Ok(Err(error)) => of_io(&error),
        Ok(Ok(stream)) => converse(spec, book, place, stream).await,
    };
    book.close(place, outcome);
}

pub(crate) fn bound_socket(target: SocketAddr) -> io::Result<TcpSocket> {
    let mut last = None;
    // A port may still be held by a connection of an earlier round.
    for _ in 0..64 {
        let (socket, any) = match target {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, SocketAddr::from((Ipv4Addr::UNSPECIFIED, next_port()))),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, SocketAddr::from((Ipv6Addr::UNSPECIFIED, next_port()))),
        };
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        match socket.bind(any) {
            Ok(()) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

async fn converse(spec: &Spec, book: &Book, place: usize, stream: TcpStream) -> Outcome {
    let (mut sender, connection) = match http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await {
        Ok(parts) => parts,
        Err(error) => return of_hyper(&error),
    };
    let connection = tokio::spawn(connection);
    let mut server: Option<String> = None;
    let mut number = 0_u64;
    let outcome = loop {
        number += 1;
        match timeout(spec.timeout, ask(&mut sender, spec, number)).await {
            Err(_) => break Outcome::Timeout,
            Ok(Err(outcome)) => break outcome,
            Ok(Ok(name)) => match &server {
                Some(first) if *first != name => {
                    break Outcome::Other(format!("began with {first}, then {name} answered"));
                }
                _ => {
                    book.answered(place, &name);
                    server = Some(name);
                }
            },
        }
        if spec.mode == Mode::Short || book.pause(spec.pause).await {
            break Outcome::Ok;
        }
    };
    drop(sender);
    // Closes in its own time; how, has been seen by then.
    if timeout(Duration::from_secs(1), connection).await.is_err() && outcome == Outcome::Ok {
        return Outcome::Other("the connection does not close".to_owned());
    }
    outcome
}

/// Asks for `number`; the name of the server that gave it back.
async fn ask(sender: &mut http1::SendRequest<Empty<Bytes>>, spec: &Spec, number: u64) -> Result<String, Outcome> {
    let mut request = Request::get(format!("/?n={number}")).header("host", spec.target.to_string());
    if spec.mode == Mode::Short {
        request = request.header("connection", "close");
    }
    let request = request.body(Empty::new()).map_err(|error| Outcome::Other(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| of_hyper(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| of_hyper(&error))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    match text.trim_end().split_once(' ') {
        Some((name, echoed)) if status.is_success() && echoed == number.to_string() => Ok(name.to_owned()),
        _ => Err(Outcome::Other(format!("asked for {number}, got {status} and {text:?}"))),
    }
}

fn of_hyper(error: &hyper::Error) -> Outcome {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return of_io(error);
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Outcome::Closed;
    }
    Outcome::Other(error.to_string())
}

pub(crate) fn of_io(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => Outcome::Reset,
        io::ErrorKind::TimedOut => Outcome::Timeout,
        io::ErrorKind::UnexpectedEof => Outcome::Closed,
        _ => Outcome::Other(error.to_string()),
    }
}
