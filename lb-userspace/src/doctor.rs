//! Finds what is wrong on this machine and how to fix it. Only reads; changes nothing.

mod backends;
mod capabilities;
mod finding;
mod kernel;
mod neighbours;
mod network;
mod sizes;
mod unit;

use std::path::Path;

pub use capabilities::Subject;

use crate::{
    model::Config,
    node::{genl::Genl, interfaces::Netlink},
    view::types::Finding,
};

/// Checks everything that Weir needs: the capabilities of `subject`, the kernel, and, given a
/// configuration, the sizes of the maps, its interfaces and the routes to its backends. Worst
/// findings first.
pub async fn findings(config: Option<&Config>, pin_dir: &Path, subject: &Subject) -> Vec<Finding> {
    let mut findings = kernel::findings(pin_dir);
    findings.push(capabilities::finding(subject));
    if let Some(config) = config {
        findings.extend(sizes::finding(config, pin_dir));
        match network(config, pin_dir).await {
            Ok(more) => findings.extend(more),
            Err(reason) => findings.push(finding::error(
                "netlink",
                reason,
                "run it as root, in the network namespace of the agent",
            )),
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

async fn network(config: &Config, pin_dir: &Path) -> Result<Vec<Finding>, String> {
    let netlink = Netlink::connect().map_err(|error| error.to_string())?;
    let genl = Genl::connect().map_err(|error| format!("cannot open a generic netlink socket: {error}"))?;
    let interfaces = netlink.interfaces().await.map_err(|error| error.to_string())?;
    let mut findings = network::findings(config, &interfaces, &genl, pin_dir);
    findings.extend(backends::findings(config, &interfaces, &netlink).await.map_err(|error| error.to_string())?);
    Ok(findings)
}
