//! How XDP may send through each interface. The kernel drops what is sent another way, without a word.

use std::{collections::BTreeMap, io};

use lb_common::limits::{MAX_INTERFACES, WAY_OUT_NO_TX, WAY_OUT_REDIRECT};

use super::{
    attach::Hook,
    genl::Genl,
    interfaces::{HookMode, Interface},
};

/// For `Image::ways_out`: every interface that takes redirected packets as it is now, and every one that doesn't take `XDP_TX`. It can change with the interface's offloads and
/// with the program at the other end of a veth, so ask again now and then.
pub fn ways_out(genl: &Genl, interfaces: &BTreeMap<u32, Interface>, hooks: &[Hook]) -> io::Result<BTreeMap<u32, u32>> {
    let mut ways_out = BTreeMap::new();
    for interface in interfaces.values().filter(|interface| interface.is_up && !interface.is_loopback) {
        let is_native = hooks.iter().any(|hook| hook.ifindex == interface.index && hook.xdp == Some(HookMode::Native));
        let is_veth = interface.kind.as_deref() == Some("veth");
        let takes_packets = match genl.xdp_features(interface.index) {
            Ok(Some(features)) => features.can_be_redirected_to(),
            // An older kernel. Drivers send for XDP once they run it; only of a veth it is the other end that counts.
            Ok(None) => is_native && !is_veth,
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
