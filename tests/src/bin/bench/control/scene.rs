//! Where the agent runs: a bed of network namespaces, in which one server answers for every
//! backend.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, server_v4, server_v6},
    config::AgentConfig,
    netns::Netns,
    process::{check, wait_for},
    supervisor::Supervisor,
};

use super::{
    size::{BACKENDS_V4, BACKENDS_V6, PORT},
    watch::BackendEntries,
};

/// Removed whole when dropped.
pub struct Scene {
    supervisor: Supervisor,
    pub bed: Bed,
}

/// How long a start, or first verdicts on all backends, may take.
const PATIENCE: Duration = Duration::from_secs(600);

impl Scene {
    pub fn new() -> Result<Self> {
        let bed = Bed::new(Layout::Routed, 1)?;
        answer_for_all(&bed)?;
        Ok(Self { supervisor: Supervisor::new(&bed.dir())?, bed })
    }

    /// An agent that reports to this scene, not started yet.
    pub fn agent(&self, config: &AgentConfig) -> Result<Agent> {
        let mut agent = Agent::prepare(&self.bed, config)?;
        agent.environment.push(("NOTIFY_SOCKET".into(), self.supervisor.path.clone().into()));
        Ok(agent)
    }

    /// Starts the agent. The time from `exec` until it tells the supervisor that it is ready.
    pub fn start(&self, agent: &mut Agent) -> Result<Duration> {
        // What an agent before this one has told.
        self.supervisor.told_within(Duration::ZERO);
        let began = Instant::now();
        agent.launch()?;
        let told =
            self.supervisor.told_until("READY=1", PATIENCE, |message| message.lines().any(|line| line == "READY=1"));
        told.with_context(|| format!("the agent's log:\n{}", agent.log_tail()))?;
        Ok(began.elapsed())
    }

    /// Waits until the maps say of every backend that it is up. The agent is not asked: its answers
    /// take time from the probes.
    pub fn wait_all_up(&self, agent: &Agent, backends: u32) -> Result<()> {
        let maps = BackendEntries::open(&agent.pin_dir)?;
        let all_up = wait_for("every backend is up", PATIENCE, || {
            thread::sleep(Duration::from_millis(500));
            Ok(maps.count_up()? >= backends)
        });
        all_up.map(drop)
    }

    /// How many probes the server has seen begin. Most of them no program of the server ever sees:
    /// they end before the handshake does.
    pub fn probes(&self) -> Result<u64> {
        let text = check(self.server()?.command("nft").args(["list", "counter", "inet", "bench", "probes"]))?;
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).with_context(|| format!("no count of packets in {text:?}"))
    }

    /// From now on the server refuses connections to these addresses.
    pub fn refuse(&self, addresses: &[IpAddr]) -> Result<()> {
        self.change_refused("add", addresses)
    }

    pub fn accept_again(&self, addresses: &[IpAddr]) -> Result<()> {
        self.change_refused("delete", addresses)
    }

    fn change_refused(&self, verb: &str, addresses: &[IpAddr]) -> Result<()> {
        let listed = |set: &str, v4: bool| {
            let of_family = addresses.iter().filter(|address| address.is_ipv4() == v4);
            let texts: Vec<String> = of_family.map(IpAddr::to_string).collect();
            (!texts.is_empty()).then(|| format!("{verb} element inet bench {set} {{ {} }};", texts.join(", ")))
        };
        // One transaction.
        let commands: String = [listed("refused4", true), listed("refused6", false)].into_iter().flatten().collect();
        check(self.server()?.command("nft").arg(commands)).map(drop)
    }

    fn server(&self) -> Result<&Netns> {
        self.bed.servers.first().context("the bed has no server")
    }
}

/// Sends what is for the backends to the bed's one server, whose loopback interface takes whole
/// prefixes as its own, and accepts there.
fn answer_for_all(bed: &Bed) -> Result<()> {
    let server = bed.servers.first().context("the bed has no server")?;
    let (v4, v6) = (server_v4(1), server_v6(1));
    bed.lb.ip(&format!("route add {BACKENDS_V4} via {v4}\n-6 route add {BACKENDS_V6} via {v6}"))?;
    server.ip(&format!("route add local {BACKENDS_V4} dev lo\n-6 route add local {BACKENDS_V6} dev lo"))?;
    let rules = "table inet bench { set refused4 { type ipv4_addr; }; set refused6 { type ipv6_addr; }; \
                 counter probes { }; \
                 chain input { type filter hook input priority 0; \
                 tcp flags & (syn | ack) == syn counter name probes; \
                 ip daddr @refused4 tcp flags syn reject with tcp reset; \
                 ip6 daddr @refused6 tcp flags syn reject with tcp reset; }; }";
    check(server.command("nft").arg(rules))?;
    for address in ["0.0.0.0", "::"] {
        let address = SocketAddr::new(address.parse()?, PORT);
        let listener = server.run(move || listener(address))?.with_context(|| format!("can't listen at {address}"))?;
        let accepting = thread::Builder::new().name(format!("accepts at {address}"));
        accepting.spawn(move || accept_all(&listener)).context("can't start a thread")?;
    }
    Ok(())
}

/// With a queue that is long enough for a burst of probes.
fn listener(address: SocketAddr) -> Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(4096)?)?;
    Ok(socket.into())
}

/// Ends with the process.
fn accept_all(listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok(_) => {}
            // The probe has ended the connection already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                eprintln!("warning: the server accepts no more: {error}");
                return;
            }
        }
    }
}
