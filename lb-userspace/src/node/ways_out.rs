//! How XDP may send through each interface. The kernel silently drops packets sent in any other
//! way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use lb_common::limits::{MAX_INTERFACES, WAY_OUT_NO_TX, WAY_OUT_REDIRECT};

use super::{genl::Genl, interfaces::Interface};

/// The entries of `WAYS_OUT`: the bits `WAY_OUT_*` by interface index, where any are set. `native`
/// has the interfaces on which Weir's program runs in native XDP. The result can change with an
/// interface's offloads and with the program at the other end of a veth, so it is computed again
/// periodically.
pub fn ways_out(
    genl: &Genl,
    interfaces: &BTreeMap<u32, Interface>,
    native: &BTreeSet<u32>,
) -> io::Result<BTreeMap<u32, u32>> {
    let mut ways_out = BTreeMap::new();
    for interface in interfaces.values().filter(|interface| interface.is_up && !interface.is_loopback) {
        let is_native = native.contains(&interface.index);
        let is_veth = interface.kind.as_deref() == Some("veth");
        let takes_packets = match genl.xdp_features(interface.index) {
            Ok(Some(features)) => features.can_be_redirected_to(),
            Ok(None) => is_native && sends_for_xdp(interface.kind.as_deref(), driver(&interface.name).as_deref()),
            // The interface was removed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => false,
            Err(error) => return Err(error),
        };
        let redirect = if takes_packets { WAY_OUT_REDIRECT } else { 0 };
        let no_tx = if is_native && is_veth { WAY_OUT_NO_TX } else { 0 };
        // An interface for which the map has no room sends by TC.
        if redirect | no_tx != 0 && ways_out.len() < MAX_INTERFACES as usize {
            ways_out.insert(interface.index, redirect | no_tx);
        }
    }
    Ok(ways_out)
}

/// Drivers that run XDP programs but do not accept redirected packets (no `ndo_xdp_xmit`).
const WITHOUT_REDIRECTS: [&str; 3] = ["mlx4_core", "nfp", "nicvf"];

/// Guesses whether an interface that runs XDP natively accepts redirected packets, because kernels
/// before Linux 6.3 don't report it. Hardware drivers that run XDP accept them, with few
/// exceptions. For a virtual interface (`kind`) it depends on other interfaces: for a veth on its
/// other end, for a bond on its members. If unknown, the guess is no, which is safe: TC can send
/// through every interface.
fn sends_for_xdp(kind: Option<&str>, driver: Option<&str>) -> bool {
    kind.is_none() && driver.is_some_and(|driver| !WITHOUT_REDIRECTS.contains(&driver))
}

/// The driver of a hardware interface, from sysfs.
fn driver(interface: &str) -> Option<String> {
    let driver = fs::read_link(format!("/sys/class/net/{interface}/device/driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernel_redirects_only_to_hardware_whose_driver_is_known_to_take_it() {
        for (kind, driver, takes) in [
            (None, Some("virtio_net"), true),
            (None, Some("ixgbe"), true),
            (None, Some("mlx4_core"), false),
            (None, Some("nicvf"), false),
            (None, None, false),
            (Some("veth"), None, false),
            (Some("bond"), None, false),
            (Some("tun"), None, false),
        ] {
            assert_eq!(sends_for_xdp(kind, driver), takes, "{kind:?} {driver:?}");
        }
    }
}
