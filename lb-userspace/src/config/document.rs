//! Reads the document, and the settings of the node as a whole. Defaults are here and in `service`.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::{limits::MAX_SNAT_ADDRESSES, ports::MAX_RANGES};

use super::{address, check, fields::Value, limits, range, service, tunnel};
use crate::model::{
    Admin, Config, DEFAULT_SNAT_PORTS, FlowTables, NodeSettings, Snat, Timeouts, Tunnel, XdpMode, seed,
};

pub const KEYS: [&str; 11] = [
    "version",
    "interfaces",
    "xdpMode",
    "hashSeed",
    "snat",
    "timeouts",
    "tunnel",
    "flowTables",
    "limits",
    "admin",
    "services",
];
pub const SNAT_KEYS: [&str; 2] = ["addresses", "ports"];
pub const TIMEOUT_KEYS: [&str; 3] = ["halfOpen", "established", "closing"];
pub const FLOW_TABLE_KEYS: [&str; 3] = ["established", "halfOpen", "seen"];
pub const ADMIN_KEYS: [&str; 2] = ["socket", "http"];
pub const XDP_MODES: [(&str, XdpMode); 3] =
    [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];

/// The largest time-out of a flow: two weeks.
const MAX_TIMEOUT: Duration = Duration::from_secs(14 * 24 * 3600);
/// Allowed number of entries of a flow table; the largest takes some hundred MiB.
pub const FLOW_TABLE_SIZES: RangeInclusive<u32> = 1024..=1 << 22;
/// IFNAMSIZ without the final zero.
const MAX_INTERFACE_NAME: usize = 15;
/// `sun_path` without the final zero.
const MAX_SOCKET_PATH: usize = 107;

/// Reads the configuration. Mistakes are recorded in the value's reader; then the result is `None`.
pub fn read(root: &Value<'_>) -> Option<Config> {
    if root.is_null() {
        return root.problem("the file is empty; `weir config init` prints an example");
    }
    let fields = root.fields(&KEYS)?;
    // Read everything before returning, so that all mistakes are recorded.
    let version = fields.required("version").and_then(|value| version(&value));
    let interfaces = fields.required("interfaces").and_then(|value| interfaces(&value));
    let xdp_mode = fields.or("xdpMode", XdpMode::Auto, |value| value.word(&XDP_MODES));
    let hash_seed = fields.or("hashSeed", None, |value| hash_seed(value).map(Some));
    let snat = fields.or("snat", Snat { addresses: Vec::new(), ports: DEFAULT_SNAT_PORTS.to_vec() }, snat);
    let timeouts = fields.or("timeouts", default_timeouts(), timeouts);
    let admin = fields.or("admin", default_admin(), admin);
    let tunnel = fields.or("tunnel", Tunnel::default(), tunnel::read);
    let flow_tables = fields.or("flowTables", FlowTables::default(), flow_tables);
    let limits = fields.or("limits", limits::ReadLimits::default(), limits::read);
    // A node that only decapsulates packets from tunnels balances nothing.
    let only_decapsulates = tunnel.as_ref().is_none_or(|tunnel| !tunnel.peers.is_empty());
    let services = match fields.given("services") {
        None if only_decapsulates => Some(Vec::new()),
        _ => fields.required("services").and_then(|value| service::read_all(&value)),
    };
    let services = services.and_then(|services| {
        check::services(services, fields.optional("snat").as_ref(), snat.as_ref(), limits.as_ref())
    });
    version?;
    Some(Config {
        node: NodeSettings {
            interfaces: interfaces?,
            xdp_mode: xdp_mode?,
            hash_seed: hash_seed?,
            snat: snat?,
            timeouts: timeouts?,
            tunnel: tunnel?,
            flow_tables: flow_tables?,
            limits: limits?.limits,
            admin: admin?,
        },
        services: services?,
    })
}

fn version(value: &Value<'_>) -> Option<()> {
    match value.text()? {
        "1" => Some(()),
        other => value.problem(format!("must be 1, the only version that this weir reads, is {other}")),
    }
}

fn interfaces(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.problem("must name at least one interface, or a glob like eth*");
    }
    let mut names: Vec<String> = Vec::new();
    for item in &items {
        let Some(name) = item.text() else { continue };
        let is_glob = name.contains(['*', '?', '[']);
        if name.is_empty() || name.contains('/') || name.contains(char::is_whitespace) {
            item.problem::<()>(format!("{name:?} can't be the name of an interface"));
        } else if !is_glob && name.len() > MAX_INTERFACE_NAME {
            item.problem::<()>(format!("{name} is longer than an interface's name can be, {MAX_INTERFACE_NAME} bytes"));
        } else if names.iter().any(|other| other == name) {
            item.problem::<()>(format!("{name} is listed twice"));
        } else {
            names.push(name.to_owned());
        }
    }
    (names.len() == items.len()).then_some(names)
}

fn hash_seed(value: &Value<'_>) -> Option<seed::Seed> {
    let text = value.text()?;
    match seed::from_hex(text) {
        Some(seed) => Some(seed),
        None => value.problem(format!(
            "must be 32 hex digits, is {} characters{}; `weir config init` makes one",
            text.chars().count(),
            if text.len() == 32 { ", not all of them hex digits" } else { "" }
        )),
    }
}

fn snat(value: &Value<'_>) -> Option<Snat> {
    let fields = value.fields(&SNAT_KEYS)?;
    let addresses = fields.or("addresses", Vec::new(), |value| {
        let items = value.items()?;
        if items.len() > MAX_SNAT_ADDRESSES as usize {
            return value.problem(format!("has {} addresses, can have at most {MAX_SNAT_ADDRESSES}", items.len()));
        }
        let mut addresses = Vec::new();
        for item in &items {
            match address::read(item) {
                Some(address) if addresses.contains(&address) => {
                    item.problem::<()>(format!("{address} is listed twice"));
                }
                Some(address) => addresses.push(address),
                None => {}
            }
        }
        (addresses.len() == items.len()).then_some(addresses)
    });
    let ports = fields.or("ports", DEFAULT_SNAT_PORTS.to_vec(), ports);
    Some(Snat { addresses: addresses?, ports: ports? })
}

fn ports(value: &Value<'_>) -> Option<Vec<(u16, u16)>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.problem("must hold at least one range, as in 1024-32767: without ports there is no SNAT");
    }
    if items.len() > MAX_RANGES {
        return value.problem(format!("has {} ranges, can have at most {MAX_RANGES}", items.len()));
    }
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for item in &items {
        let Some(text) = item.text() else { continue };
        let Some((first, last)) = range::parse(text).filter(|(first, _)| *first > 0) else {
            item.problem::<()>(format!("must be a range of ports in 1 to 65535, as in 1024-32767, is {text}"));
            continue;
        };
        if let Some((from, to)) = ranges.iter().find(|(from, to)| first <= *to && *from <= last) {
            item.problem::<()>(format!("{text} overlaps {from}-{to}"));
            continue;
        }
        ranges.push((first, last));
    }
    let complete = ranges.len() == items.len();
    ranges.sort_unstable();
    complete.then_some(ranges)
}

pub fn default_timeouts() -> Timeouts {
    Timeouts {
        half_open: Duration::from_secs(30),
        established: Duration::from_secs(2 * 3600),
        closing: Duration::from_secs(60),
    }
}

fn timeouts(value: &Value<'_>) -> Option<Timeouts> {
    let fields = value.fields(&TIMEOUT_KEYS)?;
    let default = default_timeouts();
    let read = |key, default| fields.or(key, default, |value| value.duration(Duration::from_secs(1)..=MAX_TIMEOUT));
    let (half_open, established, closing) = (
        read("halfOpen", default.half_open),
        read("established", default.established),
        read("closing", default.closing),
    );
    Some(Timeouts { half_open: half_open?, established: established?, closing: closing? })
}

fn flow_tables(value: &Value<'_>) -> Option<FlowTables> {
    let fields = value.fields(&FLOW_TABLE_KEYS)?;
    let default = FlowTables::default();
    let size = |value: &Value<'_>| value.integer(FLOW_TABLE_SIZES);
    let established = fields.or("established", default.established, size);
    let half_open = fields.or("halfOpen", default.half_open, size);
    let seen = match (fields.optional("seen"), established) {
        (None, established) => Some(default.seen.min(established.unwrap_or(default.seen))),
        (Some(value), established) => size(&value).and_then(|seen| match established {
            Some(established) if seen > established => value.problem(format!(
                "must not exceed `established`, {established}, because SEEN entries move there when their slot \
                settles; is {seen}"
            )),
            _ => Some(seen),
        }),
    };
    Some(FlowTables { established: established?, half_open: half_open?, seen: seen? })
}

pub fn default_admin() -> Admin {
    Admin { socket: PathBuf::from("/run/weir/agent.sock"), http: Some(SocketAddr::from(([0, 0, 0, 0], 9560))) }
}

fn admin(value: &Value<'_>) -> Option<Admin> {
    let fields = value.fields(&ADMIN_KEYS)?;
    let default = default_admin();
    let socket = fields.or("socket", default.socket, |value| {
        let text = value.text()?;
        if !Path::new(text).is_absolute() || text.len() > MAX_SOCKET_PATH || text.contains('\0') {
            return value.problem(format!("must be an absolute path of at most {MAX_SOCKET_PATH} bytes, is {text:?}"));
        }
        Some(PathBuf::from(text))
    });
    // An empty or null value turns HTTP off.
    let http = match fields.given("http") {
        None => Some(default.http),
        Some(value) if value.is_null() => Some(None),
        Some(value) => http(&value),
    };
    Some(Admin { socket: socket?, http: http? })
}

fn http(value: &Value<'_>) -> Option<Option<SocketAddr>> {
    let text = value.text()?;
    if text.is_empty() {
        return Some(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => value.problem("must have a port of 1 to 65535, has 0"),
        Ok(address) => Some(Some(address)),
        Err(_) => value.problem(format!(
            "must be ADDRESS:PORT, as in 0.0.0.0:9560 or [::]:9560, or \"\" to serve nothing, is {text}"
        )),
    }
}
