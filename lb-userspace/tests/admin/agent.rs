//! A fake agent: the real API servers, behind which a task answers canned snapshots instead of
//! owning a data path, which needs root and a kernel. It drains in steps: each look at a draining
//! backend ends one of its connections.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use lb_userspace::{
    agent::handle::{AgentHandle, Answer, Applied, Command, Queries, Rates},
    serve::{HttpServer, SocketServer},
    state::{AdminState, BackendId, Health, Origin},
    view::{
        trace::{SlotView, TraceQuery, TraceView},
        types::{
            ApiError, BackendTotals, BackendView, Choice, DiffView, ErrorCode, FlowFilter, FlowView, InterfaceView,
            LookupQuery, LookupView, Overall, ReasonView, ServiceView, Snapshot,
        },
    },
};
use tempfile::TempDir;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub struct FakeAgent {
    pub socket: PathBuf,
    pub http: SocketAddr,
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    _directory: TempDir,
}

impl FakeAgent {
    pub async fn start(snapshot: Snapshot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/agent.sock");
        let stop = CancellationToken::new();
        let (command, commands) = mpsc::channel(64);
        let snapshot = Arc::new(Mutex::new(snapshot));
        let canned = Canned { snapshot, stopped: stop.clone(), runtime: Handle::current() };
        let handle = AgentHandle::new(command, canned.clone());
        let server = SocketServer::bind(&socket).unwrap();
        let http = HttpServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = http.address;
        let encode = |snapshot: &Snapshot| format!("weir_backends {}\n# EOF\n", snapshot.backends.len());
        let servers = vec![
            tokio::spawn(answer(commands, canned)),
            tokio::spawn({
                let (handle, stopped) = (handle.clone(), stop.clone());
                async move { server.serve(handle, stopped).await.unwrap() }
            }),
            tokio::spawn({
                let stopped = stop.clone();
                async move { http.serve(handle, encode, stopped).await.unwrap() }
            }),
        ];
        Self { socket, http: address, stop, servers, _directory: directory }
    }

    /// Ends the servers as a stopping agent does, and waits until they have.
    pub async fn stop(self) -> PathBuf {
        self.stop.cancel();
        for server in self.servers {
            server.await.unwrap();
        }
        self.socket
    }
}

/// What the fake agent knows, for the one that changes it and the one that is asked.
#[derive(Clone)]
struct Canned {
    snapshot: Arc<Mutex<Snapshot>>,
    stopped: CancellationToken,
    runtime: Handle,
}

async fn answer(mut commands: mpsc::Receiver<Command>, canned: Canned) {
    while let Some(command) = commands.recv().await {
        let snapshot = &mut *canned.snapshot.lock().unwrap();
        match command {
            Command::Drain(of, answer) => {
                answer.send(change(snapshot, &of.0, |backend| set_admin(backend, AdminState::Draining))).ok();
            }
            Command::Undrain(of, answer) => {
                answer.send(change(snapshot, &of.0, |backend| set_admin(backend, AdminState::Active))).ok();
            }
            Command::SetWeight(of, weight, answer) => {
                answer
                    .send(change(snapshot, &of.0, |backend| {
                        backend.weight = weight.unwrap_or(1);
                        format!("weight of {} is {}", backend.address, backend.weight)
                    }))
                    .ok();
            }
            Command::Ping(answer) => {
                answer.send(Ok(())).ok();
            }
            Command::Reload { accept_loss, answer } => {
                // As if the file had these mistakes.
                let errors = &snapshot.status.config.errors;
                let result = if errors.is_empty() {
                    Ok(format!("reloaded, accept loss: {accept_loss}"))
                } else {
                    Err(ApiError { code: ErrorCode::Invalid, message: errors.join("\n") })
                };
                answer.send(result).ok();
            }
        }
    }
}

impl Queries for Canned {
    fn snapshot(&self, _: Rates) -> Snapshot {
        let mut snapshot = self.snapshot.lock().unwrap();
        let told = snapshot.clone();
        for backend in snapshot.backends.iter_mut().filter(|backend| backend.admin == AdminState::Draining) {
            backend.connections_active = backend.connections_active.map(|count| count.saturating_sub(1));
        }
        told
    }

    fn state(&self) -> Snapshot {
        self.snapshot.lock().unwrap().clone()
    }

    fn backends(&self, chosen: &[BackendId]) -> Vec<BackendView> {
        let is_chosen = |view: &&BackendView| chosen.contains(&view.id());
        self.snapshot.lock().unwrap().backends.iter().filter(is_chosen).cloned().collect()
    }

    fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowView>, ApiError> {
        let is_asked = |flow: &FlowView| filter.client.is_none_or(|client| flow.client.ip() == client);
        Ok(flows().into_iter().filter(is_asked).collect())
    }

    fn lookup(&self, query: &LookupQuery) -> Result<LookupView, ApiError> {
        Ok(lookup(query.client, query.vip))
    }

    fn diff(&self) -> Result<Vec<DiffView>, ApiError> {
        Ok(Vec::new())
    }

    fn trace(&self, query: TraceQuery, answer: Answer<mpsc::Receiver<TraceView>>) {
        let (sender, receiver) = mpsc::channel(16);
        answer.send(Ok(receiver)).ok();
        self.runtime.spawn(tell(query, sender, self.stopped.clone()));
    }
}

/// A SYN to each VIP, and a packet that was dropped; then nothing more, until nobody listens or the
/// agent stops.
async fn tell(query: TraceQuery, to: mpsc::Sender<TraceView>, stopped: CancellationToken) {
    let decision = |src: &str, dst: &str, verdict: &str, reason: &str| TraceView {
        at: 1_700_000_000.5,
        interface: "eth0".to_owned(),
        hook: "xdp".to_owned(),
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        to: None,
        tcp_flags: Some("SYN".to_owned()),
        sequence: Some(7),
        length: 60,
        service: Some("web".to_owned()),
        vip: Some(dst.parse().unwrap()),
        slot: Some(slot()),
        backend: Some("10.2.0.11:8080".parse().unwrap()),
        rule: Some("ring".to_owned()),
        why: "the owner of its slot".to_owned(),
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        help: "To a backend, by XDP.".to_owned(),
        missed: 2,
    };
    let decisions = [
        decision("198.51.100.7:40000", "192.0.2.10:80", "forward", "to_backend"),
        decision("[2001:db8:1::7]:40000", "[2001:db8::10]:80", "forward", "to_backend"),
        decision("198.51.100.8:40000", "192.0.2.10:80", "drop", "no_route"),
    ];
    for decision in decisions.into_iter().filter(|decision| query.fits(decision)) {
        to.send(decision).await.ok();
    }
    tokio::select! {
        () = to.closed() => {}
        () = stopped.cancelled() => {}
    }
}

fn set_admin(backend: &mut BackendView, admin: AdminState) -> String {
    backend.admin = admin;
    backend.admin_from = Origin::Cli;
    backend.eligible = admin == AdminState::Active;
    backend.drain_remaining_seconds = (admin == AdminState::Draining).then_some(900.0);
    format!("{}/{} is {} now", backend.service, backend.address, admin.name())
}

fn change(
    snapshot: &mut Snapshot,
    selector: &str,
    mut change: impl FnMut(&mut BackendView) -> String,
) -> Result<Applied, ApiError> {
    let mut changed = Applied { messages: Vec::new(), chosen: Vec::new() };
    for backend in &mut snapshot.backends {
        if format!("{}/{}", backend.service, backend.address) == selector {
            changed.messages.push(change(backend));
            changed.chosen.push(backend.id());
        }
    }
    if changed.chosen.is_empty() {
        return Err(ApiError { code: ErrorCode::NotFound, message: format!("no backend fits {selector:?}") });
    }
    Ok(changed)
}

fn lookup(client: SocketAddr, vip: SocketAddr) -> LookupView {
    let served = vip.port() == 80;
    let backend: Option<SocketAddr> = served.then(|| "10.2.0.11:8080".parse().unwrap());
    let why = if served { "ring" } else { "port not served" }.to_owned();
    LookupView {
        client,
        vip,
        service: served.then(|| "web".to_owned()),
        mode: served.then(|| "nat".to_owned()),
        slot: served.then(slot),
        backend,
        why: why.clone(),
        explanation: "canned".to_owned(),
        under_way: Choice { backend, why, explanation: "canned".to_owned() },
        entries: Vec::new(),
    }
}

fn slot() -> SlotView {
    SlotView {
        number: 77,
        ring_size: 16381,
        state: "settled".to_owned(),
        current: Some("10.2.0.11:8080".parse().unwrap()),
        previous: Some("10.2.0.11:8080".parse().unwrap()),
    }
}

fn flows() -> Vec<FlowView> {
    let flow = |client: &str| FlowView {
        client: client.parse().unwrap(),
        vip: "192.0.2.10:80".parse().unwrap(),
        service: "web".to_owned(),
        backend: "10.2.0.11:8080".parse().unwrap(),
        source: "10.2.0.1:40000".parse().unwrap(),
        state: "established".to_owned(),
        why: "nat".to_owned(),
        age_seconds: Some(65.0),
        idle_seconds: 4.0,
    };
    vec![flow("198.51.100.7:40000"), flow("198.51.100.8:40000")]
}

/// One service on two VIPs with a backend of each family; all is well.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        services: vec![service("192.0.2.10"), service("2001:db8::10")],
        backends: vec![backend("10.2.0.11:8080"), backend("[fd02::11]:8080")],
        drops: vec![ReasonView { interface: Some("eth0".to_owned()), ..dropped() }],
        drops_by_service: vec![ReasonView {
            service: Some("web".to_owned()),
            vip: Some("192.0.2.10:80".parse().unwrap()),
            ..dropped()
        }],
        interfaces: vec![InterfaceView {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: "native".to_owned(),
            tc: "tcx".to_owned(),
            mtu: 1500,
            actions: vec![("drop".to_owned(), 3)],
            problem: String::new(),
        }],
        ..Snapshot::default()
    };
    snapshot.status.version = "0.0.0-fake".to_owned();
    snapshot.status.state = Overall::Ok;
    snapshot.status.sync.last_success_at = 1.0;
    snapshot.status.backends = BackendTotals { all: 2, up: 2, ..BackendTotals::default() };
    snapshot
}

fn dropped() -> ReasonView {
    ReasonView {
        interface: None,
        service: None,
        vip: None,
        kind: "drop".to_owned(),
        reason: "no_route".to_owned(),
        help: "No route to the backend or the client.".to_owned(),
        packets_total: 3,
        packets_per_second: 0.5,
    }
}

fn service(vip: &str) -> ServiceView {
    ServiceView {
        namespace: String::new(),
        name: "web".to_owned(),
        port_name: String::new(),
        vip: vip.parse().unwrap(),
        port: 80,
        protocol: "TCP".to_owned(),
        mode: "nat".to_owned(),
        policy: "maglev".to_owned(),
        backends_eligible: 1,
        backends_all: 1,
        connections_active: Some(3),
        connections_total: 12,
        connections_per_second: 0.5,
        packets_total: 0,
        bytes_total: 0,
        reply_packets_total: 0,
        reply_bytes_total: 0,
        refused_total: 0,
        age_seconds: 60.0,
        ring_size: 16381,
        slots_in_transition: 0,
        slots_tracked: 0,
        exceptions: None,
        ring_digest: "00ff".to_owned(),
    }
}

fn backend(address: &str) -> BackendView {
    BackendView {
        namespace: String::new(),
        service: "web".to_owned(),
        port_name: String::new(),
        address: address.parse().unwrap(),
        node: None,
        zone: None,
        weight: 1,
        weight_from: Origin::File,
        admin: AdminState::Active,
        admin_from: Origin::File,
        health: Health::Up,
        eligible: true,
        removed: false,
        drain_remaining_seconds: None,
        connections_active: Some(3),
        connections_total: 12,
        connections_per_second: 0.5,
        packets_total: 0,
        bytes_total: 0,
        reply_packets_total: 0,
        reply_bytes_total: 0,
        last_change_at: None,
        last_check_at: None,
        last_check_duration_seconds: None,
        reason: String::new(),
        check_failures: Vec::new(),
        state_changes_total: 0,
        slots_share: 1.0,
        nat_ports_used: 3,
        nat_ports_max: 64512,
    }
}
