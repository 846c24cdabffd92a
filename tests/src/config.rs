//! The agent's configuration file, as a test wants it.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::bed::{Bed, Layout, VIPS, balancer_v4, balancer_v6};

#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub interfaces: Vec<String>,
    /// `auto`, `native` or `generic`.
    pub xdp_mode: &'static str,
    pub socket: PathBuf,
    pub http: SocketAddr,
    /// 32 hexadecimal digits, the same on every balancer; the agent makes one if it is `None`.
    pub hash_seed: Option<String>,
    /// The size of HALF_OPEN and of SEEN, if not the default.
    pub transient_flows: Option<u32>,
    /// As in `ringSlots: 8388608, services: 20000`.
    pub limits: Option<String>,
    /// Whose tunnel packets are opened.
    pub tunnel_peers: Vec<IpAddr>,
    /// `tunnel.source`: prefixes, at most one of each family.
    pub tunnel_source: Vec<&'static str>,
    pub services: Vec<Service>,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub vips: Vec<IpAddr>,
    pub port: u16,
    /// `nat`, `dsr-l2` or `dsr-ipip`.
    pub mode: &'static str,
    /// `translate` or `keep`.
    pub source: &'static str,
    /// `none` or `client-ip`.
    pub affinity: &'static str,
    /// A prime; the agent's default if it is `None`.
    pub ring_size: Option<u32>,
    pub health: Option<Health>,
    /// The agent's default if it is `None`.
    pub drain_timeout: Option<Duration>,
    /// The agent's default if it is `None`.
    pub settle_time: Option<Duration>,
    /// `next`, `reset` or `drop`; the agent's default if it is `None`.
    pub on_dead: Option<&'static str>,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Copy, Debug)]
pub struct Health {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    pub fall: u32,
    pub rise: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    Tcp,
    /// Of /healthz.
    Http,
}

impl Health {
    /// Quick enough for a test, slow enough for a busy machine.
    pub const QUICK: Health = Health {
        probe: Probe::Http,
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(400),
        fall: 3,
        rise: 2,
    };

    /// After this a dead server gets no new connection: the promise of the project, with the tenth
    /// of a second that it allows.
    pub fn promised_ejection(&self) -> Duration {
        self.interval * self.fall + self.timeout + Duration::from_millis(100)
    }
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    pub weight: u32,
    /// `active`, `draining` or `disabled`.
    pub state: &'static str,
    /// Where its tunnel ends, if not at its own address.
    pub tunnel: Option<IpAddr>,
}

impl AgentConfig {
    /// `web` on port 80 of both VIPs, over the first `servers` servers of the bed, in the mode that
    /// the layout is made for.
    pub fn web(bed: &Bed, servers: u16, health: Health) -> Self {
        let backends = VIPS
            .iter()
            .flat_map(|vip| (1..=servers).map(|number| bed.backend(number, *vip)))
            .map(Backend::new)
            .collect();
        let web = Service {
            name: "web".to_owned(),
            vips: VIPS.to_vec(),
            port: 80,
            mode: bed.mode(),
            source: "translate",
            affinity: "none",
            ring_size: None,
            health: Some(health),
            drain_timeout: None,
            settle_time: None,
            on_dead: None,
            backends,
        };
        Self {
            xdp_mode: "auto",
            interfaces: bed.interfaces().iter().map(|name| (*name).to_owned()).collect(),
            socket: bed.dir().join("agent.sock"),
            http: SocketAddr::from(([127, 0, 0, 1], 9560)),
            hash_seed: None,
            transient_flows: None,
            tunnel_peers: Vec::new(),
            tunnel_source: Vec::new(),
            limits: None,
            services: vec![web],
        }
    }

    /// For server `number`, which serves nobody but opens the balancers' tunnel packets.
    pub fn tunnel_end(bed: &Bed, number: u16) -> Self {
        let balancers = 1..=bed.balancers().count() as u16;
        Self {
            socket: bed.dir().join(format!("s{number}.sock")),
            interfaces: vec!["eth0".to_owned()],
            tunnel_peers: balancers.flat_map(|number| [balancer_v4(number), balancer_v6(number)]).collect(),
            services: Vec::new(),
            ..Self::web(bed, 0, Health::QUICK)
        }
    }

    /// The same with `iperf` on port 5201, over the same servers; both connections of an iperf3
    /// client meet the same server.
    pub fn with_iperf(mut self, bed: &Bed, servers: u16) -> Self {
        let address = |number, vip: &IpAddr| SocketAddr::new(bed.backend(number, *vip).ip(), 5201);
        self.services.push(Service {
            name: "iperf".to_owned(),
            vips: VIPS.to_vec(),
            port: 5201,
            mode: bed.mode(),
            source: "translate",
            affinity: "client-ip",
            ring_size: None,
            health: None,
            drain_timeout: None,
            settle_time: None,
            on_dead: None,
            backends: VIPS
                .iter()
                .flat_map(|vip| (1..=servers).map(move |n| address(n, vip)))
                .map(Backend::new)
                .collect(),
        });
        self
    }
}

impl Backend {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, weight: 1, state: "active", tunnel: None }
    }
}

impl Bed {
    /// The mode that the layout is made for.
    pub fn mode(&self) -> &'static str {
        match self.layout {
            Layout::Routed => "nat",
            Layout::SharedL2 => "dsr-l2",
            Layout::Tunnelled => "dsr-ipip",
        }
    }
}

impl fmt::Display for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "version: 1")?;
        writeln!(f, "interfaces: [{}]", self.interfaces.join(", "))?;
        writeln!(f, "xdpMode: {}", self.xdp_mode)?;
        writeln!(f, "admin: {{ socket: {}, http: \"{}\" }}", self.socket.display(), self.http)?;
        if let Some(seed) = &self.hash_seed {
            writeln!(f, "hashSeed: \"{seed}\"")?;
        }
        if let Some(entries) = self.transient_flows {
            writeln!(f, "flowTables: {{ halfOpen: {entries}, seen: {entries} }}")?;
        }
        if let Some(limits) = &self.limits {
            writeln!(f, "limits: {{ {limits} }}")?;
        }
        let peers: Vec<String> = self.tunnel_peers.iter().map(IpAddr::to_string).collect();
        if !peers.is_empty() || !self.tunnel_source.is_empty() {
            writeln!(f, "tunnel: {{ peers: {peers:?}, source: {:?} }}", self.tunnel_source)?;
        }
        writeln!(f, "services:{}", if self.services.is_empty() { " []" } else { "" })?;
        for service in &self.services {
            let vips: Vec<String> = service.vips.iter().map(|vip| format!("\"{vip}\"")).collect();
            writeln!(f, "  - name: {}", service.name)?;
            writeln!(f, "    vips: [{}]", vips.join(", "))?;
            writeln!(f, "    port: {}", service.port)?;
            writeln!(f, "    mode: {}", service.mode)?;
            if service.mode == "nat" {
                writeln!(f, "    source: {}", service.source)?;
            }
            writeln!(f, "    affinity: {}", service.affinity)?;
            if let Some(size) = service.ring_size {
                writeln!(f, "    ringSize: {size}")?;
            }
            if let Some(Health { probe, interval, timeout, fall, rise }) = service.health {
                let (interval, timeout) = (interval.as_millis(), timeout.as_millis());
                let probe = match probe {
                    Probe::Tcp => "tcp: {}",
                    Probe::Http => "http: { path: /healthz }",
                };
                write!(f, "    health: {{ {probe}, interval: {interval}ms, timeout: {timeout}ms, ")?;
                writeln!(f, "fall: {fall}, rise: {rise} }}")?;
            }
            if let Some(time) = service.drain_timeout {
                writeln!(f, "    drainTimeout: {}ms", time.as_millis())?;
            }
            if let Some(time) = service.settle_time {
                writeln!(f, "    settleTime: {}ms", time.as_millis())?;
            }
            if let Some(policy) = service.on_dead {
                writeln!(f, "    onDead: {policy}")?;
            }
            writeln!(f, "    backends:{}", if service.backends.is_empty() { " []" } else { "" })?;
            for Backend { address, weight, state, tunnel } in &service.backends {
                let (ip, port) = (address.ip(), address.port());
                let tunnel = tunnel.map(|address| format!(", tunnel: \"{address}\"")).unwrap_or_default();
                writeln!(f, "      - {{ address: \"{ip}\", port: {port}, weight: {weight}, state: {state}{tunnel} }}")?;
            }
        }
        Ok(())
    }
}

/// Replaces the file as an editor or a ConfigMap does: by rename.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    let mut new = path.as_os_str().to_owned();
    write!(new, ".new")?;
    std::fs::write(&new, text).with_context(|| format!("can't write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("can't write {}", path.display()))
}
