//! Conversions between values of the configuration and their form in map entries.

use std::{net::SocketAddr, time::Duration};

use lb_common::{backend::Backend, flow::Family, service};

use crate::model::Mode;

/// The address and port of an entry of `BACKENDS`; `None` if the entry is free or malformed.
pub fn address(backend: &Backend) -> Option<SocketAddr> {
    let family = Family::from_number(backend.family)?;
    let ip = lb_common::flow::ip_addr(family, backend.address);
    Some(SocketAddr::new(ip, u16::from_be(backend.port_be)))
}

pub const fn mode_number(mode: Mode) -> u8 {
    match mode {
        Mode::Nat => service::MODE_NAT,
        Mode::DsrL2 => service::MODE_DSR_L2,
        Mode::DsrIpip => service::MODE_DSR_IPIP,
    }
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
