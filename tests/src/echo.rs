//! A server in every server's namespace that says who it is: `17 42` is answered by `s3 17 42`. One
//! thread and one process for all of them. Its page `/healthz` can be turned to 503 while it goes
//! on serving.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::bed::Bed;

/// `s1`, `s2`, ... on the port of the bed's backends; ended when dropped.
pub struct EchoServers {
    servers: Vec<Switches>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What can be done to one server.
struct Switches {
    healthy: Arc<AtomicBool>,
    /// False: it closes its socket and every connection.
    alive: watch::Sender<bool>,
}

impl EchoServers {
    /// Returns when all of them listen.
    pub fn start(bed: &Bed) -> Result<Self> {
        raise_open_files()?;
        let mut servers = Vec::new();
        let mut sockets = Vec::new();
        for (number, netns) in (1..).zip(&bed.servers) {
            let port = bed.backend_port();
            let socket = netns.run(move || bound(port))?;
            let socket = socket.with_context(|| format!("s{number} can't have port {port}"))?;
            let (alive, lives) = watch::channel(true);
            let healthy = Arc::new(AtomicBool::new(true));
            sockets.push(Server { name: format!("s{number}"), healthy: Arc::clone(&healthy), lives, socket });
            servers.push(Switches { healthy, alive });
        }
        let (listening, heard) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("echo servers".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve_all(sockets, listening))
        });
        let echo = Self { servers, thread: Some(thread.context("can't start the echo servers")?) };
        heard.recv().context("the echo servers don't listen")?;
        Ok(echo)
    }

    /// What `/healthz` of server `number` (from 1) says from now on; it serves either way.
    pub fn set_healthy(&self, number: u16, healthy: bool) {
        self.servers[usize::from(number) - 1].healthy.store(healthy, Ordering::Relaxed);
    }

    /// Ends server `number` (from 1) with all its connections, as `kill -9` would.
    pub fn kill(&self, number: u16) {
        self.servers[usize::from(number) - 1].alive.send_replace(false);
    }
}

impl Drop for EchoServers {
    fn drop(&mut self) {
        for server in &self.servers {
            server.alive.send_replace(false);
        }
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => eprintln!("warning: echo servers: {error:#}"),
            Some(Err(_)) => eprintln!("warning: the echo servers panicked"),
        }
    }
}

struct Server {
    name: String,
    healthy: Arc<AtomicBool>,
    lives: watch::Receiver<bool>,
    socket: TcpSocket,
}

fn bound(port: u16) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    Ok(socket)
}

async fn serve_all(servers: Vec<Server>, listening: std::sync::mpsc::Sender<()>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for Server { name, healthy, mut lives, socket } in servers {
        let listener = socket.listen(4096).with_context(|| format!("{name} can't listen"))?;
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let name: Arc<str> = name.into();
            loop {
                tokio::select! {
                    // An error: the switch is gone, and so is whoever wanted the server.
                    _ = lives.wait_for(|lives| !lives) => return,
                    // They end when their clients do.
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(answer_all(Arc::clone(&name), Arc::clone(&healthy), stream));
                        }
                        Err(error) => eprintln!("warning: {name}: {error}"),
                    },
                }
            }
        });
    }
    listening.send(()).ok();
    while let Some(ended) = tasks.join_next().await {
        ended.context("an echo server panicked")?;
    }
    Ok(())
}

/// Answers line by line until the client is done; how a connection ends is for the client to tell.
async fn answer_all(name: Arc<str>, healthy: Arc<AtomicBool>, mut stream: TcpStream) {
    let mut bytes = Vec::with_capacity(256);
    let mut answer = Vec::with_capacity(256);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        let is_page = bytes.starts_with(b"GET ");
        answer.clear();
        if is_page {
            let status = if healthy.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" };
            answer.extend_from_slice(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes());
        } else {
            while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                answer.extend_from_slice(name.as_bytes());
                answer.push(b' ');
                answer.extend(bytes.drain(..=end));
            }
        }
        if stream.write_all(&answer).await.is_err() || is_page {
            return;
        }
    }
}

/// Both ends of thousands of connections are in one process.
fn raise_open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("can't read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("can't raise the limit of open files")
}
