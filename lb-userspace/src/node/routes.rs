//! How the node reaches an address, according to its routing tables.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};

use super::interfaces::{Netlink, NetlinkError, request};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The outgoing interface.
    pub ifindex: u32,
    /// `None`: the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The node's source address for this route: the SNAT address where none is configured.
    pub source: Option<IpAddr>,
    /// The address is the node's own.
    pub is_local: bool,
}

impl Route {
    /// The next hop towards `to`, whose neighbour entry is needed.
    pub fn next_hop(&self, to: IpAddr) -> IpAddr {
        self.gateway.unwrap_or(to)
    }
}

impl Netlink {
    /// The route to an address; `None` if there is none, or if it is a rejecting route.
    pub async fn route_to(&self, to: IpAddr) -> Result<Option<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
        let found = self.handle.route().get(message).execute().try_next().await;
        match found {
            Ok(found) => Ok(found.and_then(route)),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(error.raw_code()) => Ok(None),
            Err(error) => Err(request(format!("look up the route to {to}"))(error)),
        }
    }
}

/// Whether the error code is one that the kernel returns for `unreachable`, `prohibit` and
/// `blackhole` routes, or without a route.
fn is_no_route(code: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&-code)
}

fn route(message: RouteMessage) -> Option<Route> {
    let is_local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let mut route = Route { ifindex: 0, gateway: None, source: None, is_local };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    (route.ifindex != 0).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
