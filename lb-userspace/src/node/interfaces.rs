//! The node's interfaces and addresses, as the kernel reports them over rtnetlink: always those of
//! the network namespace in which the agent runs.

use std::{collections::BTreeMap, io, net::IpAddr};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::{
        RouteNetlinkMessage,
        address::AddressAttribute,
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
    },
    proto::{self, ConnectionHandle},
    sys::protocols::NETLINK_ROUTE,
};

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error("cannot {what} over netlink: {source}")]
    Request { what: String, source: rtnetlink::Error },
}

/// The state of one interface at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// `None` on interfaces without Ethernet addresses.
    pub mac: Option<[u8; 6]>,
    pub is_up: bool,
    pub is_loopback: bool,
    /// The kind of virtual interface (`veth`, `bridge`, ...); `None` for most hardware.
    pub kind: Option<String>,
    /// The attached XDP program, ours or not.
    pub xdp: Option<XdpHook>,
    /// Sorted; includes link-local addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XdpHook {
    pub mode: HookMode,
    /// The program's id, as in `bpftool prog show`.
    pub program: u32,
}

/// How an XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookMode {
    /// In the driver.
    Native,
    /// In the stack, on any interface.
    Generic,
    /// On the network card, or several at once: never ours.
    Other,
}

impl HookMode {
    pub const fn name(self) -> &'static str {
        match self {
            HookMode::Native => "native",
            HookMode::Generic => "generic",
            HookMode::Other => "other",
        }
    }
}

/// Two netlink connections of this process; clones share them.
#[derive(Clone)]
pub struct Netlink {
    pub(super) handle: Handle,
    /// For many requests in one system call, which [`Handle`] cannot make.
    pub(super) batches: ConnectionHandle<RouteNetlinkMessage>,
}

impl Netlink {
    /// Starts tasks on the current runtime; they end with the last clone.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        let (connection, batches, _) = proto::new_connection(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, batches })
    }

    /// All interfaces with their addresses, by index.
    pub async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, NetlinkError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(request("list interfaces"))?;
        let mut interfaces: BTreeMap<u32, Interface> =
            links.into_iter().map(|link| (link.header.index, interface(link))).collect();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(request("list addresses"))? {
            let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
            // On point-to-point links ADDRESS is the other end's. LOCAL is always ours, but on
            // other links IPv6 has only ADDRESS.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            interface.addresses.extend(local.or(address));
        }
        for interface in interfaces.values_mut() {
            interface.addresses.sort_unstable();
            interface.addresses.dedup();
        }
        Ok(interfaces)
    }
}

/// The interfaces that match one of `patterns` (names, or globs with `*`, `?` and `[...]`), and the
/// patterns that match none. The loopback matches only by its exact name.
pub fn matching<'a, 'p>(
    interfaces: &'a BTreeMap<u32, Interface>,
    patterns: &'p [String],
) -> (Vec<&'a Interface>, Vec<&'p str>) {
    let means = |pattern: &String, interface: &Interface| {
        *pattern == interface.name || (!interface.is_loopback && glob(pattern.as_bytes(), interface.name.as_bytes()))
    };
    let found = interfaces.values().filter(|link| patterns.iter().any(|pattern| means(pattern, link))).collect();
    let unmet = patterns.iter().filter(|pattern| !interfaces.values().any(|link| means(pattern, link)));
    (found, unmet.map(String::as_str).collect())
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|taken| glob(rest, &name[taken..])),
        ([b'?', rest @ ..], [_, name @ ..]) => glob(rest, name),
        ([b'[', set @ ..], [first, name @ ..]) => match set.iter().position(|byte| *byte == b']') {
            Some(end) => in_set(&set[..end], *first) && glob(&set[end + 1..], name),
            None => false,
        },
        ([expected, rest @ ..], [first, name @ ..]) => expected == first && glob(rest, name),
        _ => false,
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [b'!', set @ ..] => !in_set(set, byte),
        [first, b'-', last, rest @ ..] => (*first..=*last).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
        [] => false,
    }
}

fn interface(link: LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        is_up: link.header.flags.contains(LinkFlags::Up),
        is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        kind: None,
        xdp: None,
        addresses: Vec::new(),
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(address) => interface.mac = address.try_into().ok(),
            LinkAttribute::Xdp(attributes) => interface.xdp = xdp_hook(&attributes),
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    interface
}

fn xdp_hook(attributes: &[LinkXdp]) -> Option<XdpHook> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::None) => None,
        LinkXdp::Attached(XdpAttached::Driver) => Some(HookMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(HookMode::Generic),
        LinkXdp::Attached(_) => Some(HookMode::Other),
        _ => None,
    })?;
    let program = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(XdpHook { mode, program })
}

pub(super) fn request(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Request { what: what.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_mean_what_a_shell_means() {
        for (pattern, name, is_meant) in [
            ("eth0", "eth0", true),
            ("eth*", "eth12", true),
            ("eth*", "veth1", false),
            ("*", "anything", true),
            ("en?0", "eno0", true),
            ("en?0", "en0", false),
            ("eth[0-2]", "eth1", true),
            ("eth[0-2]", "eth3", false),
            ("eth[!0]", "eth1", true),
            ("eth[!0]", "eth0", false),
            ("eth[", "eth[", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), is_meant, "{pattern} {name}");
        }
    }
}
