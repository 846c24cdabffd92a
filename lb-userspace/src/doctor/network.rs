//! Checks the interfaces of the configuration, and the node's own addresses and ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use aya::programs::links::{FdLink, PinnedLink};
use lb_common::flow::Family;

use super::finding::{error, ok, sysctl, warning};
use crate::{
    dataplane::{
        hooks,
        pins::{Pin, PinKind},
    },
    model::{Config, SourceAddress, XdpMode},
    node::{
        genl::Genl,
        interfaces::{HookMode, Interface, matching},
    },
    view::types::Finding,
};

pub(super) fn findings(
    config: &Config,
    interfaces: &BTreeMap<u32, Interface>,
    genl: &Genl,
    pin_dir: &Path,
) -> Vec<Finding> {
    let (ours, unmet) = matching(interfaces, &config.node.interfaces);
    let mut findings: Vec<Finding> = unmet
        .iter()
        .map(|pattern| {
            error(
                "interfaces",
                format!("no interface is called {pattern}"),
                "correct `interfaces`; `ip link` lists them",
            )
        })
        .collect();
    for interface in ours {
        findings.extend(hook(interface, pin_dir));
        findings.extend(forwarding(config, interface));
        findings.extend(reverse_path(config, interface));
        findings.extend(offloads(config, interface, genl));
    }
    findings.extend(own_vips(config, interfaces));
    findings.extend(ephemeral_ports(config));
    findings.push(ok(
        "local clients",
        "a process on this machine that connects to a VIP is not balanced: its packets never cross XDP",
    ));
    findings
}

fn hook(interface: &Interface, pin_dir: &Path) -> Vec<Finding> {
    let name = &interface.name;
    let mut findings = Vec::new();
    if !interface.is_up {
        findings.push(error(name, format!("{name} is down"), format!("ip link set dev {name} up")));
    }
    if let Some(found) = interface.xdp {
        let path = Pin::new(PinKind::LinkXdp, interface.index).path(pin_dir);
        let link = PinnedLink::from_pin(path).ok().and_then(|link| FdLink::from(link).info().ok());
        if link.is_none_or(|link| link.program_id() != found.program) {
            let taken = hooks::taken(interface, found).to_string();
            findings.push(error(format!("xdp {name}"), taken, format!("ip link set dev {name} xdp off")));
        } else {
            findings.push(ok(format!("xdp {name}"), format!("attached to {name}, {}", found.mode.name())));
        }
    }
    findings
}

/// Checks forwarding: the next-hop lookup refuses packets from an interface that does not forward.
fn forwarding(config: &Config, interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let one = |family: Family| {
        let title = family.name();
        let directory = title.to_lowercase();
        let check = format!("forwarding {name}");
        let key = format!("net/{directory}/conf/{name}/forwarding");
        match sysctl(&key).as_deref() {
            Some("0") => error(
                check,
                format!("{name} does not forward {title}: packets to VIPs would be dropped (no_route)"),
                // Interface names can contain dots, so the key is written with slashes.
                format!("sysctl -w {key}=1"),
            ),
            Some(_) => ok(check, format!("{name} forwards {title}")),
            None => error(check, format!("{name} has no {title}"), format!("enable {title} on {name}")),
        }
    };
    families(config).into_iter().map(one).collect()
}

/// Warns if a strict reverse path filter could drop answers, because they can come back by another
/// path.
fn reverse_path(config: &Config, interface: &Interface) -> Option<Finding> {
    let asymmetric = config.services.iter().find(|service| {
        (service.mode.is_dsr() || service.source == SourceAddress::Keep) && service.vips.iter().any(IpAddr::is_ipv4)
    })?;
    let read =
        |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).and_then(|value| value.parse::<u8>().ok());
    let name = &interface.name;
    // The kernel uses the larger of both; 1 is strict, 2 is loose.
    let effective = read("all")?.max(read(name)?);
    if effective != 1 {
        return Some(ok(format!("rp_filter {name}"), format!("the reverse path filter of {name} is not strict")));
    }
    Some(warning(
        format!("rp_filter {name}"),
        format!(
            "{name} has a strict reverse path filter, and answers of service {} can arrive on another \
            interface than the route to their source",
            asymmetric.name
        ),
        format!("sysctl -w net/ipv4/conf/{name}/rp_filter=2"),
    ))
}

fn offloads(config: &Config, interface: &Interface, genl: &Genl) -> Vec<Finding> {
    let name = &interface.name;
    let offloads = match genl.offloads(interface.index) {
        Ok(Some(offloads)) => offloads,
        Ok(None) => return vec![ok(format!("offloads {name}"), "not told by this kernel")],
        Err(error) => {
            let message = format!("the offloads of {name} cannot be read: {error}");
            return vec![warning(format!("offloads {name}"), message, format!("look at `ethtool -k {name}`"))];
        }
    };
    let mut findings = Vec::new();
    if offloads.contains("rx-lro") {
        findings.push(error(
            format!("lro {name}"),
            format!("{name} merges received packets in hardware (LRO), which must not be forwarded"),
            format!("ethtool -K {name} lro off"),
        ));
    }
    let is_generic =
        config.node.xdp_mode == XdpMode::Generic || interface.xdp.is_some_and(|xdp| xdp.mode == HookMode::Generic);
    if is_generic && offloads.contains("rx-gro") {
        findings.push(warning(
            format!("gro {name}"),
            format!("{name} has XDP in generic mode, which sees packets already merged by GRO, larger than the MTU"),
            format!("ethtool -K {name} gro off"),
        ));
    }
    if findings.is_empty() {
        findings.push(ok(format!("offloads {name}"), format!("no offload of {name} is in the way")));
    }
    findings
}

fn own_vips(config: &Config, interfaces: &BTreeMap<u32, Interface>) -> Vec<Finding> {
    let own: BTreeMap<IpAddr, &str> = interfaces
        .values()
        .flat_map(|interface| interface.addresses.iter().map(|address| (*address, interface.name.as_str())))
        .collect();
    let vips: BTreeSet<IpAddr> = config.services.iter().flat_map(|service| service.vips.iter().copied()).collect();
    vips.iter()
        .filter_map(|vip| own.get_key_value(vip))
        .map(|(vip, interface)| {
            warning(
                "vip",
                format!(
                    "VIP {vip} is also an address of this node, on {interface}: ports that no service has go to \
                    the node"
                ),
                format!(
                    "use an address for the VIP that the node does not have, or `ip addr del {vip} dev \
                    {interface}`"
                ),
            )
        })
        .collect()
}

/// Warns if the node's own connections and our SNAT flows could use the same port of the same
/// address.
fn ephemeral_ports(config: &Config) -> Option<Finding> {
    config.services.iter().find(|service| service.uses_snat())?;
    let range = sysctl("net/ipv4/ip_local_port_range")?;
    let reserved = sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let shared = shared_ports(&config.node.snat.ports, &range, &reserved);
    let Some((first, last)) = shared else {
        return Some(ok("snat ports", format!("apart from the node's own ports ({})", range.replace('\t', "-"))));
    };
    Some(warning(
        "snat ports",
        format!(
            "`snat.ports` and the node's own ports ({}) share {first} to {last}: a flow can take away an answer to \
            the node",
            range.replace('\t', "-")
        ),
        format!("choose other `snat.ports`, or `sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}`"),
    ))
}

/// The first and the last of the ports that both SNAT and the node use, and that are not reserved.
fn shared_ports(snat: &[(u16, u16)], local: &str, reserved: &str) -> Option<(u16, u16)> {
    let (first, last) = local.split_once(char::is_whitespace)?;
    let local = first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?;
    let reserved: Vec<(u16, u16)> = reserved
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        })
        .collect();
    let is_in = |ranges: &[(u16, u16)], port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
    let mut shared = local.filter(|port| is_in(snat, *port) && !is_in(&reserved, *port));
    let first = shared.next()?;
    Some((first, shared.next_back().unwrap_or(first)))
}

fn families(config: &Config) -> Vec<Family> {
    let has = |family: &Family| {
        config.services.iter().flat_map(|service| &service.vips).any(|vip| Family::of(vip) == *family)
    };
    Family::BOTH.into_iter().filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_node_uses_itself_are_found_unless_they_are_reserved() {
        let default = [(1024, 32767), (61000, 65535)];
        assert_eq!(shared_ports(&default, "32768\t60999", ""), None);
        assert_eq!(shared_ports(&default, "32000\t61001", ""), Some((32000, 61001)));
        assert_eq!(shared_ports(&default, "32000\t40000", "32000-32767"), None);
        assert_eq!(shared_ports(&default, "32766\t40000", "32767"), Some((32766, 32766)));
    }
}
