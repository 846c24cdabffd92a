//! How XDP may send through each interface. The kernel drops what is sent another way, without a
//! word.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use lb_common::limits::{MAX_INTERFACES, WAY_OUT_NO_TX, WAY_OUT_REDIRECT};

use super::{genl::Genl, interfaces::Interface};

/// The entries of `WAYS_OUT`: for each interface index the bits `WAY_OUT_*`, where there are any.
/// `native` are the interfaces on which Weir's program runs in native XDP. The answer can change
/// with an interface's offloads and with the program at the other end of a veth, so it is asked for
/// again now and then.
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
            // It went away meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => false,
            Err(error) => return Err(error),
        };
        let redirect = if takes_packets { WAY_OUT_REDIRECT } else { 0 };
        let no_tx = if is_native && is_veth { WAY_OUT_NO_TX } else { 0 };
        // Beyond the size of the map it goes by TC.
        if redirect | no_tx != 0 && ways_out.len() < MAX_INTERFACES as usize {
            ways_out.insert(interface.index, redirect | no_tx);
        }
    }
    Ok(ways_out)
}

/// Drivers that run XDP programs and take no redirected packets (no `ndo_xdp_xmit`).
const WITHOUT_REDIRECTS: [&str; 3] = ["mlx4_core", "nfp", "nicvf"];

/// Whether an interface that runs XDP natively takes redirected packets, by rule: kernels before
/// Linux 6.3 don't tell. Drivers of hardware do once they run XDP, but for a few. Of a virtual
/// interface (`kind`) it depends on others: of a veth on its other end, of a bond on its members.
/// Where it is not known the answer is no: TC can send through every interface.
fn sends_for_xdp(kind: Option<&str>, driver: Option<&str>) -> bool {
    kind.is_none() && driver.is_some_and(|driver| !WITHOUT_REDIRECTS.contains(&driver))
}

/// The driver of a hardware interface, by sysfs.
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
