//! Errors of the servers.

use std::path::PathBuf;

/// Why a server could not be started, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "an agent is running already: {holder} answers on {}; stop it first, or give this one another `admin.socket`",
        path.display()
    )]
    Taken { path: PathBuf, holder: String },
    #[error("{} is in the way of the API's socket and is no socket; move it away or change \
        `admin.socket`", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot make the API's socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address} for metrics: {source}; change `admin.http` or free the port")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the server on {at} stopped: {source}")]
    Stopped { at: String, source: std::io::Error },
}
