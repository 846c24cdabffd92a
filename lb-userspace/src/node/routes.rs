//! How the node reaches an address, according to its routing tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::StreamExt;
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
    },
    sys::SocketAddr,
};
use tokio::time::timeout;

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
        Ok(self.routes_to(&BTreeSet::from([to])).await?.remove(&to))
    }

    /// The routes to these addresses; an address without a route, or with a rejecting one, is left
    /// out. Each address takes one request; many requests go into one system call.
    pub async fn routes_to(&self, addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Route>, NetlinkError> {
        let mut routes = BTreeMap::new();
        let mut left = addresses.iter().copied().peekable();
        while left.peek().is_some() {
            let batch: Vec<IpAddr> = left.by_ref().take(BATCH).collect();
            self.look_up(&batch, &mut routes).await?;
        }
        Ok(routes)
    }

    async fn look_up(&self, batch: &[IpAddr], routes: &mut BTreeMap<IpAddr, Route>) -> Result<(), NetlinkError> {
        let requests = batch.iter().map(|to| {
            let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(request_for(*to)));
            request.header.flags = NLM_F_REQUEST;
            request
        });
        let unanswered = |to: IpAddr| request(look_up_of(to))(rtnetlink::Error::RequestFailed);
        let kernel = SocketAddr::new(0, 0);
        let first = batch.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut answers =
            self.batches.request_batch(requests.collect::<Vec<_>>(), kernel).map_err(|_| unanswered(first))?;
        // The kernel works on the requests in order, and answers each by one message.
        for to in batch {
            let answer = timeout(PATIENCE, answers.next()).await.ok().flatten().ok_or_else(|| unanswered(*to))?;
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(found)) => {
                    routes.extend(route(found).map(|route| (*to, route)));
                }
                NetlinkPayload::Error(error) if is_no_route(error.raw_code()) => {}
                NetlinkPayload::Error(error) => {
                    return Err(request(look_up_of(*to))(rtnetlink::Error::NetlinkError(error)));
                }
                _ => return Err(unanswered(*to)),
            }
        }
        Ok(())
    }
}

/// The number of requests in one system call. Their answers, of up to 5 KiB each, fit into the
/// receive buffer of a socket, which is 208 KiB by default.
const BATCH: usize = 32;

/// The kernel answers at once; an answer that takes longer was dropped.
const PATIENCE: Duration = Duration::from_secs(5);

fn look_up_of(to: IpAddr) -> String {
    format!("look up the route to {to}")
}

fn request_for(to: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    message
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
