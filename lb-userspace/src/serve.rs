//! The admin API: JSON over HTTP on a unix socket, and metrics over TCP (docs/api.md).

mod answer;
mod error;
mod http;
mod routes;
mod socket;

pub use error::ServeError;
pub use http::HttpServer;
pub use socket::SocketServer;

/// The default path of the API's socket.
pub const DEFAULT_SOCKET: &str = "/run/weir/agent.sock";
