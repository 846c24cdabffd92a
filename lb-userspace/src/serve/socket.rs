//! The API's unix socket. Its file mode keeps other users from connecting; in addition, the user of
//! every peer is checked.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::{UnixListener as StdUnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use axum::{
    Extension,
    extract::{ConnectInfo, Request, connect_info::Connected},
    middleware::{self, Next},
    response::Response,
    serve::IncomingStream,
};
use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::{Uid, geteuid},
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{error::ServeError, routes};
use crate::{
    agent::handle::AgentHandle,
    view::types::{ApiError, ErrorCode},
};

/// The bound socket; its file is removed on drop.
#[derive(Debug)]
pub struct SocketServer {
    listener: StdUnixListener,
    file: SocketFile,
}

impl SocketServer {
    /// Binds the socket. Creates the directory if it is missing, and replaces the socket of a dead
    /// agent; fails if a running agent has the socket.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Socket { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
        }
        clear_the_way(path)?;
        let listener = bind_private(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode } })
    }

    /// Answers requests until `shutdown` is cancelled, then finishes the pending ones.
    pub async fn serve(self, agent: AgentHandle, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { listener, file } = self;
        let stopped = |source| ServeError::Stopped { at: file.path.display().to_string(), source };
        let listener = UnixListener::from_std(listener).map_err(stopped)?;
        let allowed = Allowed(geteuid());
        let app = routes::router(agent)
            .layer(middleware::from_fn(check_peer))
            .layer(Extension(allowed))
            .into_make_service_with_connect_info::<Peer>();
        axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await.map_err(stopped)
    }
}

fn clear_the_way(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(stream) => Err(ServeError::Taken { path: path.to_owned(), holder: holder(&stream) }),
        // Nobody listens: the agent that created the socket is dead.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// Describes the process behind a socket so that a person can find it.
fn holder(stream: &UnixStream) -> String {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) => {
            let pid = peer.pid();
            match fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(name) => format!("{} (pid {pid})", name.trim_end()),
                Err(_) => format!("pid {pid}"),
            }
        }
        Err(error) => format!("a process that cannot be named ({error})"),
    }
}

/// Sets the mode before the bind, which gives it to the file, so that at no moment can another user
/// connect.
fn bind_private(path: &Path) -> io::Result<StdUnixListener> {
    let descriptor =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    fchmod(&descriptor, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&descriptor, Backlog::new(128)?)?;
    Ok(StdUnixListener::from(descriptor))
}

/// The file of our socket, removed on drop. If another agent has replaced the file, it is left
/// alone.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the API's socket stays behind");
        }
    }
}

/// The user at the other end of a connection, if the kernel reported it.
#[derive(Clone, Copy, Debug)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Peer(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// The user that may connect besides root: the agent's own user.
#[derive(Clone, Copy, Debug)]
struct Allowed(Uid);

impl Allowed {
    fn admits(self, peer: Peer) -> Result<(), ApiError> {
        let message = match peer.0 {
            Some(uid) if uid == 0 || uid == self.0.as_raw() => return Ok(()),
            Some(uid) => format!("the API is for root only, not for user id {uid}; try again with sudo"),
            None => "the API is for root only, and the kernel does not say who asks".to_owned(),
        };
        Err(ApiError { code: ErrorCode::Forbidden, message })
    }
}

async fn check_peer(
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(allowed): Extension<Allowed>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    allowed.admits(peer)?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_is_private_and_goes_with_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/when/needed/agent.sock");
        let server = SocketServer::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn socket_of_a_dead_agent_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file, as a killed agent does");
        SocketServer::bind(&path).unwrap();
    }

    #[test]
    fn socket_of_a_living_agent_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let living = SocketServer::bind(&path).unwrap();
        let refusal = SocketServer::bind(&path).unwrap_err().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        assert!(refusal.contains("agent.sock"), "{refusal}");
        drop(living);
        SocketServer::bind(&path).unwrap();
    }

    #[test]
    fn file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(SocketServer::bind(&path), Err(ServeError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn only_root_and_the_agents_own_user_are_admitted() {
        let allowed = Allowed(Uid::from_raw(990));
        assert!(allowed.admits(Peer(Some(0))).is_ok());
        assert!(allowed.admits(Peer(Some(990))).is_ok());
        assert_eq!(allowed.admits(Peer(Some(1000))).unwrap_err().code, ErrorCode::Forbidden);
        assert_eq!(allowed.admits(Peer(None)).unwrap_err().code, ErrorCode::Forbidden);
    }
}
