//! The documents of the admin API. The agent makes them, the CLI shows them, and the metrics are
//! computed from them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::trace::SlotView;
use crate::state::{AdminState, BackendId, Health, Origin, ServiceName};

/// The complete state at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub status: Status,
    pub services: Vec<ServiceView>,
    pub backends: Vec<BackendView>,
    /// By interface.
    pub drops: Vec<ReasonView>,
    /// By service. Packets that belong to no service, and forwarded packets, are not split by
    /// service.
    #[serde(default)]
    pub drops_by_service: Vec<ReasonView>,
    pub interfaces: Vec<InterfaceView>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overall {
    /// Every service has all its wanted backends, the data path is attached and in sync with the
    /// configuration.
    #[default]
    Ok,
    /// Traffic flows, but something needs attention; `reasons` says what.
    Degraded,
    /// Some service with backends has none that is eligible, or the data path is not attached.
    Down,
}

impl Overall {
    pub const fn name(self) -> &'static str {
        match self {
            Overall::Ok => "ok",
            Overall::Degraded => "degraded",
            Overall::Down => "down",
        }
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub state: Overall,
    /// Why the state is not `ok`, one sentence each.
    pub reasons: Vec<String>,
    /// What a starting agent still waits for before it is ready; empty once it is.
    #[serde(default)]
    pub waiting_for: String,
    /// When `state` last changed; seconds since 1970.
    pub state_since: f64,
    /// Seconds since 1970.
    pub started_at: f64,
    pub config: ConfigStatus,
    /// Number of backends by resulting state.
    pub backends: BackendTotals,
    pub tables: Vec<TableView>,
    pub nat: NatStatus,
    pub sync: SyncStatus,
    /// Number of hooks that disappeared without the agent's doing and were attached again, since
    /// the agent started.
    #[serde(default)]
    pub lost_hooks: u64,
    /// The sources other than the configuration file.
    #[serde(default)]
    pub sources: Vec<SourceView>,
    /// What `weir doctor` found at start: see [`Finding`].
    pub findings: Vec<Finding>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    pub path: String,
    /// When the running configuration was taken over; seconds since 1970.
    pub loaded_at: f64,
    pub last_reload_ok: bool,
    /// The errors of the current file, if it was refused.
    pub errors: Vec<String>,
}

/// A source of services other than the configuration file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceView {
    pub name: String,
    /// Whether the source has listed all its services since the agent was started.
    pub synced: bool,
    /// When the source became unreachable; seconds since 1970; `None` if it can be reached.
    pub failing_since: Option<f64>,
    /// Why the source can't be reached.
    pub error: Option<String>,
    /// The number of services that the source has published.
    pub services: u64,
    /// The services that are not served as the source describes them.
    pub refused: Vec<RefusedView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedView {
    pub service: String,
    /// Every reason.
    pub reason: String,
    /// Whether the service's previous version is still served.
    pub kept: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTotals {
    pub all: u32,
    pub up: u32,
    pub down: u32,
    pub unknown: u32,
    pub draining: u32,
    pub disabled: u32,
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableView {
    pub map: String,
    pub entries: u64,
    pub max_entries: u64,
    /// Insertions that the kernel refused since the map was made.
    pub insert_failures: u64,
}

/// The SNAT pool. A port that is in use for one backend can be used for other backends, too.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatStatus {
    pub addresses: Vec<IpAddr>,
    /// Number of flows that hold a port, over all backends.
    pub ports_used: u64,
    /// Ports for each backend, times backends.
    pub ports_max: u64,
    /// The fullest backend, as `SERVICE/ADDRESS:PORT`, and its share in use (0 to 1).
    pub fullest: Option<(String, f64)>,
    /// Connections reset because no port was free.
    pub exhausted: u64,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncStatus {
    /// Seconds since 1970; 0 if never.
    pub last_success_at: f64,
    pub last_duration_seconds: f64,
    pub last_error: Option<String>,
    pub errors: u64,
}

/// What a check found on this machine, and how to fix it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    /// What was checked, in a word or two: `forwarding`, `bpffs`, `gro eth0`.
    pub check: String,
    pub message: String,
    /// The command to run, or what to do; empty if nothing is wrong.
    pub remedy: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Weir works, but not as well as it could, or not in every case.
    Warning,
    /// Weir can't work as long as this is so.
    Error,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One VIP and port of a service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Empty for services from a file.
    pub namespace: String,
    pub name: String,
    /// Empty for services from a file.
    #[serde(default)]
    pub port_name: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: String,
    pub mode: String,
    /// `maglev`, or `maglev client-ip` with affinity.
    pub policy: String,
    /// Eligible backends of the VIP's family.
    pub backends_eligible: u32,
    pub backends_all: u32,
    /// Connections open now; `None` where it is not known (DSR).
    pub connections_active: Option<u64>,
    pub connections_total: u64,
    pub connections_per_second: f64,
    pub packets_total: u64,
    pub bytes_total: u64,
    pub reply_packets_total: u64,
    pub reply_bytes_total: u64,
    pub refused_total: u64,
    /// Seconds.
    pub age_seconds: f64,
    pub ring_size: u32,
    pub slots_in_transition: u32,
    /// Number of slots whose owners agree, but which have or may have flows that are exceptions.
    #[serde(default)]
    pub slots_tracked: u32,
    /// Flows with an entry of their own in a DSR mode; `None` in `nat`, where every flow has an
    /// entry, and before the first count.
    #[serde(default)]
    pub exceptions: Option<ExceptionsView>,
    /// Hex; equal on nodes whose rings agree.
    pub ring_digest: String,
}

impl ServiceView {
    pub fn full_name(&self) -> ServiceName {
        ServiceName::new(&self.namespace, &self.name, &self.port_name)
    }
}

/// Flows of a DSR service that have an entry of their own, by table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExceptionsView {
    pub half_open: u64,
    pub established: u64,
    pub seen: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// The namespace of the backend's service, as in [`ServiceView`].
    pub namespace: String,
    pub service: String,
    #[serde(default)]
    pub port_name: String,
    pub address: SocketAddr,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub weight: u32,
    pub weight_from: Origin,
    pub admin: AdminState,
    pub admin_from: Origin,
    pub health: Health,
    /// Whether the backend gets new flows.
    pub eligible: bool,
    /// The backend is no longer declared, and will be gone when its drain ends.
    pub removed: bool,
    /// Maximum number of seconds until its drain ends.
    pub drain_remaining_seconds: Option<f64>,
    /// Connections open now; `None` where it is not known (DSR).
    pub connections_active: Option<u64>,
    pub connections_total: u64,
    pub connections_per_second: f64,
    pub packets_total: u64,
    pub bytes_total: u64,
    pub reply_packets_total: u64,
    pub reply_bytes_total: u64,
    /// When its health last changed; seconds since 1970.
    pub last_change_at: Option<f64>,
    /// When it was last probed; seconds since 1970.
    pub last_check_at: Option<f64>,
    pub last_check_duration_seconds: Option<f64>,
    /// The result of the last probe, or why the backend gets no flows.
    pub reason: String,
    pub check_failures: Vec<(String, u64)>,
    pub state_changes_total: u64,
    /// Share of its family's slots (0 to 1).
    pub slots_share: f64,
    /// Flows that hold a SNAT port, and how many there can be; 0 of 0 where there is no SNAT.
    pub nat_ports_used: u64,
    pub nat_ports_max: u64,
}

impl BackendView {
    pub fn service_name(&self) -> ServiceName {
        ServiceName::new(&self.namespace, &self.service, &self.port_name)
    }

    pub fn id(&self) -> BackendId {
        BackendId { service: self.service_name(), address: self.address }
    }
}

/// One flow with an entry of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub service: String,
    pub backend: SocketAddr,
    /// The client's address as the backend sees it; unchanged in DSR modes.
    pub source: SocketAddr,
    /// `half-open`, `established` or `closing`.
    pub state: String,
    /// Why the flow has an entry: `nat`, `opened in transition`, `kept when its slot settled`,
    /// `seen in transition`.
    pub why: String,
    /// Seconds since the flow began, if known.
    pub age_seconds: Option<f64>,
    pub idle_seconds: f64,
}

/// How many packets the BPF programs treated in one way (`kind`) for one reason; counted by
/// interface or by service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonView {
    /// `None` in a count over all interfaces.
    pub interface: Option<String>,
    /// The full name of the VIP and port's service; `None` in a count by interface, for packets of
    /// no service, and for forwarded packets.
    pub service: Option<String>,
    pub vip: Option<SocketAddr>,
    /// See `lb_common::verdict::Kind::name`.
    pub kind: String,
    /// See `lb_common::verdict::Reason::name`.
    pub reason: String,
    pub help: String,
    pub packets_total: u64,
    pub packets_per_second: f64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceView {
    pub name: String,
    pub ifindex: u32,
    /// `native`, `generic`, or `none` when the hook is lost.
    pub xdp_mode: String,
    /// `tcx`, `clsact` or `none`.
    pub tc: String,
    pub mtu: u32,
    /// Packets by action: `pass`, `forward`, `reject`, `drop`.
    pub actions: Vec<(String, u64)>,
    /// Empty when all is well.
    pub problem: String,
}

/// The flow to look up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LookupQuery {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// The sequence number of the flow's SYN, by which the programs recognise a SYN that was sent
    /// before.
    pub sequence: Option<u32>,
}

/// What the BPF program would do with a packet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LookupView {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub service: Option<String>,
    pub mode: Option<String>,
    pub slot: Option<SlotView>,
    /// Where a new connection would go.
    pub backend: Option<SocketAddr>,
    /// The rule: see `lb_common::trace::rule::name`; or `no backend`, `port not served`,
    /// `not a vip`.
    pub why: String,
    pub explanation: String,
    /// Where a packet of an existing connection would go.
    pub under_way: Choice,
    /// The flow's entries in the flow tables.
    pub entries: Vec<FlowView>,
}

/// The chosen backend, and why it was chosen.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    pub backend: Option<SocketAddr>,
    /// As [`LookupView::why`]; or `unknown flow`, `backend dead`, `no backend`.
    pub why: String,
    pub explanation: String,
}

/// One difference between the desired state and the state in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiffView {
    pub map: String,
    pub key: String,
    pub desired: String,
    pub programmed: String,
}

/// What a command did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// One sentence for each backend that was changed, or that already was as requested.
    pub messages: Vec<String>,
    pub backends: Vec<BackendView>,
}

/// Selects backends: `web/10.2.0.11:8080`, `10.2.0.11:8080` or `10.2.0.11`; all matching backends
/// are selected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendSelector(pub String);

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowFilter {
    pub client: Option<IpAddr>,
    pub backend: Option<BackendSelector>,
    pub vip: Option<IpAddr>,
    /// Whether to include flows that were only seen while their slot is in transition: for these,
    /// the ring gives the same backend as the entry.
    #[serde(default)]
    pub seen: bool,
    /// Maximum number of flows; 1000 if not given.
    pub limit: Option<usize>,
}

/// Why a request was refused or failed; the message says whether anything was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The object named in the request does not exist.
    NotFound,
    /// The request contradicts itself or the state.
    Invalid,
    /// The kernel or the file system refused.
    Failed,
    /// The requester is neither root nor the agent's own user.
    Forbidden,
    /// The agent is stopping, or cannot start another trace.
    Unavailable,
}

/// How to group the counts of packets and their outcomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DropsBy {
    #[default]
    Service,
    Interface,
}
