//! The keys of the configuration file: what each means, its default, and which values it takes. The
//! JSON schema for editors and the tables in docs/operations.md are made from this; tests hold the
//! reader (`document`, `service`, `health`) to the same keys, defaults, words and bounds of times.
#![expect(dead_code, reason = "the types below are there for their schema alone")]

use schemars::JsonSchema;
use serde_json::json;

use super::{
    document::{FLOW_TABLE_SIZES, default_admin, default_timeouts},
    fields::time,
    health::{DEFAULT_EXPECT, DEFAULT_FALL, DEFAULT_INTERVAL, DEFAULT_PATH, DEFAULT_RISE, DEFAULT_TIMEOUT, RESULTS},
    service::{DEFAULT_DRAIN, DEFAULT_SETTLE, DEFAULT_WEIGHT},
};
use crate::{
    model::{self, DEFAULT_RING_SIZE, DEFAULT_SNAT_PORTS, MAX_RING_SIZE, MAX_WEIGHT, limits::Limit},
    state::AdminState,
};

/// The schema, draft 2020-12. `default` is the value that a key has if it is left out, `x-default`
/// says more of it, or says it in words where no value stands for it.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).into()
}

/// What a Weir node balances.
#[derive(JsonSchema)]
#[schemars(title = "Weir configuration", rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// version of the file's format
    #[schemars(range(min = 1, max = 1))]
    version: u32,
    /// list of names, or globs with `*`, `?`, `[...]` (quote them), of the interfaces at which
    /// packets of clients and backends arrive; at least one. Globs never match the loopback
    /// interface
    #[schemars(length(min = 1))]
    interfaces: Vec<String>,
    #[schemars(extend("default" = "auto"))]
    xdp_mode: Option<XdpMode>,
    /// 32 hex digits; the same on every node of a set
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{32}$"))]
    #[schemars(extend("x-default" = "generated once, kept in the state directory"))]
    hash_seed: Option<String>,
    /// Under which addresses and ports backends see clients, in mode `nat` with `source:
    /// translate`.
    snat: Option<Snat>,
    /// How long a flow or an exception may be idle.
    timeouts: Option<Timeouts>,
    /// Encapsulated packets: mode `dsr-ipip`, and a node with backends of it.
    tunnel: Option<Tunnel>,
    /// The most exceptions of DSR services.
    flow_tables: Option<FlowTables>,
    /// How much the maps hold, which costs kernel memory.
    limits: Option<Limits>,
    /// Where the agent's servers listen.
    admin: Option<Admin>,
    /// list, may be empty; can be left out if `tunnel.peers` is set
    #[schemars(extend("x-default" = "required"))]
    services: Option<Vec<Service>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum XdpMode {
    /// native if possible, otherwise generic
    Auto,
    /// refuse an interface whose driver lacks support
    Native,
    /// always in the stack
    Generic,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Snat {
    /// up to 256 unicast addresses of the node, none of them a VIP
    #[schemars(extend("default" = [], "x-default" = "the address with which the node reaches the backend"))]
    addresses: Option<Vec<std::net::IpAddr>>,
    /// 1 to 4 ranges that do not overlap, in 1 to 65535, outside of the node's own ephemeral range
    #[schemars(length(min = 1, max = 4), extend("default" = default_ports()))]
    ports: Option<Vec<PortRange>>,
}

fn default_ports() -> Vec<String> {
    DEFAULT_SNAT_PORTS.iter().map(|(first, last)| format!("{first}-{last}")).collect()
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
    /// 1s to 14d: idle timeout of a `nat` flow, or of an exception of a DSR service, whose
    /// handshake is not complete
    #[schemars(extend("default" = time(default_timeouts().half_open)))]
    half_open: Option<Time>,
    /// 1s to 14d: idle timeout of a `nat` flow or an exception
    #[schemars(extend("default" = time(default_timeouts().established)))]
    established: Option<Time>,
    /// 1s to 14d: timeout of a `nat` flow after both FINs or a RST, and of an exception after the
    /// client's FIN or RST
    #[schemars(extend("default" = time(default_timeouts().closing)))]
    closing: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Tunnel {
    /// addresses and prefixes of the balancers that may send this node `dsr-ipip` packets; tunnel
    /// packets from other senders pass to the stack
    #[schemars(extend("default" = [], "x-default" = "no peers"))]
    peers: Option<Vec<Prefix>>,
    /// one prefix for each family, within which the outer source of `dsr-ipip` packets varies by
    /// flow (IPv6: in its last 32 bits)
    #[schemars(length(max = 2), extend("default" = [], "x-default" = "the node's address towards the tunnel"))]
    source: Option<Vec<Prefix>>,
}

/// `ADDRESS/LENGTH`, or an address alone.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Prefix(#[schemars(regex(pattern = r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"))] String);

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct FlowTables {
    /// confirmed exceptions of each family; see [Exceptions](#exceptions-of-dsr-services). All
    /// three sizes take effect when the agent starts
    #[schemars(range(min = *FLOW_TABLE_SIZES.start(), max = *FLOW_TABLE_SIZES.end()))]
    #[schemars(extend("default" = model::FlowTables::default().established))]
    established: Option<u32>,
    /// exceptions of each family whose handshake is not complete. While no service has a DSR mode,
    /// this table and that of `seen` have at most 8192 entries: see [Memory](#memory)
    #[schemars(range(min = *FLOW_TABLE_SIZES.start(), max = *FLOW_TABLE_SIZES.end()))]
    #[schemars(extend("default" = model::FlowTables::default().half_open))]
    half_open: Option<u32>,
    /// flows of each family that were seen going to the previous owner of their slot; must not
    /// exceed `established`
    #[schemars(range(min = *FLOW_TABLE_SIZES.start(), max = *FLOW_TABLE_SIZES.end()))]
    #[schemars(extend("default" = model::FlowTables::default().seen))]
    #[schemars(extend("x-default" = "or `established`, if that is less"))]
    seen: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    /// backends of all services together, and one entry of Weir's own. For all four limits see
    /// [Limits of the maps](#limits-of-the-maps); they take effect when the agent starts
    #[schemars(range(min = *Limit::Backends.range().start(), max = *Limit::Backends.range().end()))]
    #[schemars(extend("default" = model::Limits::default().backends))]
    backends: Option<u32>,
    /// slots of all rings together (`ringSize` for each family of a service), and one of Weir's own
    #[schemars(range(min = *Limit::RingSlots.range().start(), max = *Limit::RingSlots.range().end()))]
    #[schemars(extend("default" = model::Limits::default().ring_slots))]
    ring_slots: Option<u32>,
    /// pairs of VIP and port of each family
    #[schemars(range(min = *Limit::Services.range().start(), max = *Limit::Services.range().end()))]
    #[schemars(extend("default" = model::Limits::default().services))]
    services: Option<u32>,
    /// VIPs, SNAT addresses, backends of services with `source: keep`, and backends on this node,
    /// of each family
    #[schemars(range(min = *Limit::Addresses.range().start(), max = *Limit::Addresses.range().end()))]
    #[schemars(extend("default" = model::Limits::default().addresses))]
    addresses: Option<u32>,
}

/// A time with its unit: 500ms, 2s, 15m, 2h.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Time(#[schemars(regex(pattern = r"^([0-9]+ *[a-zA-Z]+ *)+$|^0$"))] String);

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Admin {
    /// the API's unix socket: an absolute path of at most 107 bytes
    #[schemars(regex(pattern = r"^/"), extend("default" = default_admin().socket))]
    socket: Option<String>,
    /// `ADDRESS:PORT` of metrics and health; `""` or null turns this server off
    #[schemars(extend("default" = default_admin().http.map(|http| http.to_string())))]
    http: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    /// 1 to 63 letters, digits, `-`, `_`, `.`; begins with a letter or digit; unique
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    name: String,
    /// at least one address; each needs a backend of its family, unless the service has no backend.
    /// The pair of VIP and port must be unique in the file
    #[schemars(length(min = 1))]
    vips: Vec<std::net::IpAddr>,
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    #[schemars(extend("default" = "nat"))]
    mode: Option<Mode>,
    /// only with `nat`
    #[schemars(extend("default" = "translate"))]
    source: Option<Source>,
    #[schemars(extend("default" = "none"))]
    affinity: Option<Affinity>,
    /// slots of each family's ring; must be prime, and at least 20 times the number of the family's
    /// backends
    #[schemars(range(min = 2, max = MAX_RING_SIZE), extend("default" = DEFAULT_RING_SIZE))]
    ring_size: Option<u32>,
    /// 0s to 30d: the longest time for which flows may continue at a backend that drains or was
    /// removed from the file, and at a VIP that was removed
    #[schemars(extend("default" = time(DEFAULT_DRAIN)))]
    drain_timeout: Option<Time>,
    /// 1s to 30d: after a slot changes owner, connections that the slot does not know go to the
    /// previous owner for this long. It has no effect in `nat`, where every connection has an entry
    #[schemars(extend("default" = time(DEFAULT_SETTLE)))]
    settle_time: Option<Time>,
    /// see [A backend that dies](#a-backend-that-dies)
    #[schemars(extend("default" = "next"))]
    on_dead: Option<OnDead>,
    /// see [Health checks](#health-checks)
    #[schemars(extend("x-default" = "no probes"))]
    health: Option<Health>,
    /// list, may be empty
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
    /// connections of a backend that is gone or dead go to the new owner of their slot, which
    /// resets those that it does not know
    Next,
    /// Weir resets them
    Reset,
    /// Weir drops their packets (not in `nat`)
    Drop,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Source {
    /// the backend sees an address of the node
    Translate,
    /// the backend sees the client's address
    Keep,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Affinity {
    /// hash over addresses and ports
    None,
    /// hash over the client's address only
    ClientIp,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Health {
    /// a request over HTTP
    #[schemars(extend("x-default" = "either `http` or `tcp` is required"))]
    http: Option<Http>,
    /// `{}`: a TCP connection is enough
    #[schemars(extend("x-default" = "either `http` or `tcp` is required"))]
    tcp: Option<Tcp>,
    /// 10ms to 1h, from the start of one probe to the start of the next
    #[schemars(extend("default" = time(DEFAULT_INTERVAL)))]
    interval: Option<Time>,
    /// 10ms to the interval; for the whole probe
    #[schemars(extend("default" = time(DEFAULT_TIMEOUT), "x-default" = "or the interval, if that is shorter"))]
    timeout: Option<Time>,
    /// failures in a row make the backend down
    #[schemars(range(min = *RESULTS.start(), max = *RESULTS.end()), extend("default" = DEFAULT_FALL))]
    fall: Option<u32>,
    /// successes in a row make it up again
    #[schemars(range(min = *RESULTS.start(), max = *RESULTS.end()), extend("default" = DEFAULT_RISE))]
    rise: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
struct Http {
    /// begins with `/`, ASCII without spaces or `#`
    #[schemars(regex(pattern = r"^/"), extend("default" = DEFAULT_PATH))]
    path: Option<String>,
    /// the Host header
    #[schemars(extend("x-default" = "the backend's address and port"))]
    host: Option<String>,
    /// a status or a range in 100 to 599 that means up; redirects are not followed
    #[schemars(extend("default" = json!(format!("{}-{}", DEFAULT_EXPECT.0, DEFAULT_EXPECT.1))))]
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
    /// a unicast address, not a VIP; the pair of address and port must be unique in the service
    address: std::net::IpAddr,
    /// must equal the service's port in DSR modes
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    /// share of new flows; each family of the VIPs needs at least one backend with a weight above 0
    #[schemars(range(max = MAX_WEIGHT), extend("default" = DEFAULT_WEIGHT))]
    weight: Option<u32>,
    /// `dsr-ipip` only: destination of encapsulated packets, an address of either family
    #[schemars(extend("x-default" = "the backend's own address"))]
    tunnel: Option<std::net::IpAddr>,
    /// any text; displayed, but not used yet
    #[schemars(extend("x-default" = "none"))]
    zone: Option<String>,
    /// see [Drains](#drains-and-weights)
    #[schemars(extend("default" = "active"))]
    state: Option<AdminState>,
}
