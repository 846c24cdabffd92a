//! The JSON schema of the file, for editors. The reader is `document` and `service`; a test holds
//! both to the same keys.
#![expect(dead_code, reason = "the types below are there for their schema alone")]

use schemars::JsonSchema;

use crate::{
    model::{MAX_RING_SIZE, MAX_WEIGHT},
    state::AdminState,
};

/// The schema, draft 2020-12.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).into()
}

/// What a Weir node balances.
#[derive(JsonSchema)]
#[schemars(title = "Weir configuration", rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// Version of the file's shape.
    #[schemars(range(min = 1, max = 1))]
    version: u32,
    /// Names or globs of the interfaces at which packets of clients and backends arrive.
    #[schemars(length(min = 1))]
    interfaces: Vec<String>,
    /// `auto`, the default, prefers native and says what it got.
    xdp_mode: Option<XdpMode>,
    /// 32 hex digits, the same on every node of a set. Left out, it is made once and kept in the
    /// state directory.
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{32}$"))]
    hash_seed: Option<String>,
    /// Under which addresses and ports backends see clients, in mode nat with `source: translate`.
    snat: Option<Snat>,
    /// How long a flow of mode nat may be idle.
    timeouts: Option<Timeouts>,
    /// Encapsulated packets: mode dsr-ipip, and a node with backends of it.
    tunnel: Option<Tunnel>,
    /// Most exceptions of the DSR services, for each family.
    flow_tables: Option<FlowTables>,
    /// How much the maps hold, which costs kernel memory. A change takes a restart of the agent.
    limits: Option<Limits>,
    /// How the agent is asked.
    admin: Option<Admin>,
    /// What is balanced. Only a node with `tunnel.peers` can leave it out.
    services: Option<Vec<Service>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum XdpMode {
    Auto,
    Native,
    Generic,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Snat {
    /// Empty: the address with which the node reaches the backend.
    addresses: Option<Vec<std::net::IpAddr>>,
    /// Ranges outside of the node's own ephemeral range.
    #[schemars(length(min = 1, max = 4))]
    ports: Option<Vec<PortRange>>,
}

/// `FIRST-LAST`, or one port.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum PortRange {
    Range(#[schemars(regex(pattern = r"^[0-9]{1,5}(-[0-9]{1,5})?$"))] String),
    One(#[schemars(range(min = 1, max = 65535))] u16),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Timeouts {
    /// Default 30s.
    half_open: Option<Time>,
    /// Default 2h.
    established: Option<Time>,
    /// Default 1m.
    closing: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Tunnel {
    /// Who may send this node encapsulated packets: the balancers. Default: nobody.
    peers: Option<Vec<Prefix>>,
    /// Within which the outer source varies by flow, one for each family. Default: the node's
    /// address towards the tunnel.
    #[schemars(length(max = 2))]
    source: Option<Vec<Prefix>>,
}

/// `ADDRESS/LENGTH`, or an address alone.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Prefix(#[schemars(regex(pattern = r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"))] String);

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct FlowTables {
    /// Confirmed ones. Default 131072.
    #[schemars(range(min = 1024, max = 4194304))]
    established: Option<u32>,
    /// Handshakes under way. Default 131072.
    #[schemars(range(min = 1024, max = 4194304))]
    half_open: Option<u32>,
    /// Flows seen going to the owner before; not more than `established`. Default 131072.
    #[schemars(range(min = 1024, max = 4194304))]
    seen: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    /// Backends of all services together, and one entry of Weir's own. Default 16384.
    #[schemars(range(min = 1024, max = 65536))]
    backends: Option<u32>,
    /// Slots of all rings together (`ringSize` for each family of a service), and one of Weir's
    /// own. Default 4194304.
    #[schemars(range(min = 1024, max = 16777216))]
    ring_slots: Option<u32>,
    /// VIPs and ports of each family. Default 16384.
    #[schemars(range(min = 1024, max = 65536))]
    services: Option<u32>,
    /// VIPs, SNAT addresses, and backends of services with `source: keep`, of each family. Default
    /// 32768.
    #[schemars(range(min = 1024, max = 262144))]
    addresses: Option<u32>,
}

/// A time with its unit: 500ms, 2s, 15m, 2h.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Time(#[schemars(regex(pattern = r"^([0-9]+ *[a-zA-Z]+ *)+$|^0$"))] String);

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Admin {
    /// Absolute path of the API's socket. Default /run/weir/agent.sock.
    #[schemars(regex(pattern = r"^/"))]
    socket: Option<String>,
    /// `ADDRESS:PORT` of metrics and health, default 0.0.0.0:9560; empty or null: not served.
    http: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    /// Unique; letters, digits, `-`, `_`, `.`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    name: String,
    /// Each balances over the backends of its own family.
    #[schemars(length(min = 1))]
    vips: Vec<std::net::IpAddr>,
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    /// Default nat.
    mode: Option<Mode>,
    /// Mode nat only: whether the backend sees the node or the client. Default translate.
    source: Option<Source>,
    /// Default none.
    affinity: Option<Affinity>,
    /// Slots of the ring of each family: a prime, at least 20 for each backend. Default 16381.
    /// Can't change without loss.
    #[schemars(range(min = 2, max = MAX_RING_SIZE))]
    ring_size: Option<u32>,
    /// How long flows may go on at a backend that left the file. Default 15m.
    drain_timeout: Option<Time>,
    /// DSR modes only: how long a slot that changed owner sends connections it does not know to the
    /// owner before. Default 15m.
    settle_time: Option<Time>,
    /// What becomes of connections of a backend that is gone or dead. Default next; not drop in
    /// nat.
    on_dead: Option<OnDead>,
    /// Left out: no probes, every backend counts as up.
    health: Option<Health>,
    backends: Vec<Backend>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Mode {
    Nat,
    DsrL2,
    DsrIpip,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum OnDead {
    /// Their slot's owner resets what it does not know.
    Next,
    /// Weir resets them.
    Reset,
    /// Their packets are dropped.
    Drop,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Source {
    Translate,
    Keep,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Affinity {
    None,
    ClientIp,
}

/// One of `http` and `tcp`, and how often.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Health {
    http: Option<Http>,
    /// Connecting is enough.
    tcp: Option<Tcp>,
    /// Default 2s.
    interval: Option<Time>,
    /// Not longer than the interval. Default 1s.
    timeout: Option<Time>,
    /// Failures in a row that take a backend down. Default 3.
    #[schemars(range(min = 1, max = 100))]
    fall: Option<u32>,
    /// Successes in a row that bring it up again. Default 2.
    #[schemars(range(min = 1, max = 100))]
    rise: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Http {
    /// Default /.
    #[schemars(regex(pattern = r"^/"))]
    path: Option<String>,
    /// The Host header. Default: the backend's address.
    host: Option<String>,
    /// Status codes that mean up. Default 200-399.
    expect: Option<Expect>,
}

/// `FIRST-LAST`, or one status.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Expect {
    Range(#[schemars(regex(pattern = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"))] String),
    One(#[schemars(range(min = 100, max = 599))] u16),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tcp {}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Backend {
    address: std::net::IpAddr,
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    /// Share of new flows among the backends of a family. Default 1.
    #[schemars(range(max = MAX_WEIGHT))]
    weight: Option<u32>,
    /// Mode dsr-ipip only: where encapsulated packets go. Default: its own address.
    tunnel: Option<std::net::IpAddr>,
    zone: Option<String>,
    /// Default active.
    state: Option<AdminState>,
}
