//! The kernel's announcements: changes of links, addresses, routes, rules and neighbours, and
//! removals of TC filters. Announcements that come close together are merged into one [`News`].

use std::{collections::BTreeSet, io, time::Duration};

use futures_util::{Stream, StreamExt};
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    },
    packet_route::RouteNetlinkMessage,
    proto,
    sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    interfaces::NetlinkError,
    neighbours::{self, NextHop},
};

/// What may have changed since the previous `News`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Links or addresses have changed, or TC filters or qdiscs were removed.
    pub interfaces: bool,
    /// The route to any address may have changed.
    pub routes: bool,
    /// Addresses whose neighbour entries were removed, or are not managed by the kernel (any more).
    pub neighbours: BTreeSet<NextHop>,
    /// Announcements were lost, or there were too many to list. Anything may have changed,
    /// neighbour entries too.
    pub is_incomplete: bool,
}

/// The subscription to the kernel's announcements. It ends when this is dropped.
pub struct Changes(mpsc::Receiver<News>);

/// How long to wait for further announcements after the first one. Interfaces and routes seldom
/// change one at a time.
const WINDOW: Duration = Duration::from_millis(20);

/// Maximum number of neighbours to list one by one, so that a flood of announcements does not fill
/// the memory while nobody takes the `News`.
const MAX_NEIGHBOURS: usize = 4096;

/// The multicast groups to join. `Nexthop` is among them because a next-hop object of the kernel
/// can change without an announcement for the routes that use it.
const GROUPS: [MulticastGroup; 10] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
    MulticastGroup::Neigh,
];

impl Changes {
    /// Subscribes, in a task of the current runtime.
    pub fn watch() -> Result<Self, NetlinkError> {
        let (mut connection, handle, announced) =
            proto::new_connection::<Announcement>(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        subscribe(&mut connection).map_err(NetlinkError::Socket)?;
        let connection = tokio::spawn(connection);
        let (tell, news) = mpsc::channel(1);
        tokio::spawn(async move {
            gather(announced.map(|(message, _)| message), tell).await;
            connection.abort();
            // The connection lives as long as its handle.
            drop(handle);
        });
        Ok(Self(news))
    }

    /// Waits for news. `None`: the subscription has ended, because its socket failed.
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<News> {
        self.0.recv().await
    }
}

fn subscribe(connection: &mut proto::Connection<Announcement>) -> io::Result<()> {
    let socket = connection.socket_mut().socket_mut();
    socket.bind(&SocketAddr::new(0, 0))?;
    GROUPS.iter().try_for_each(|group| socket.add_membership(*group as u32))
}

/// Sends the announcements of each window as one `News`. Until the receiver has taken the previous
/// `News`, further announcements are merged into the next one, so a busy receiver loses nothing.
async fn gather(mut announced: impl Stream<Item = NetlinkMessage<Announcement>> + Unpin, tell: mpsc::Sender<News>) {
    loop {
        let mut news = News::default();
        while news == News::default() {
            tokio::select! {
                message = announced.next() => match message {
                    Some(message) => news.add(message),
                    None => return,
                },
                () = tell.closed() => return,
            }
        }
        let permit = async {
            sleep(WINDOW).await;
            tell.reserve().await
        };
        tokio::pin!(permit);
        loop {
            tokio::select! {
                // Check the end of the window first: in a storm there is always another
                // announcement.
                biased;
                permit = &mut permit => match permit {
                    Ok(permit) => {
                        permit.send(news);
                        break;
                    }
                    Err(_) => return,
                },
                message = announced.next() => match message {
                    Some(message) => news.add(message),
                    None => return,
                },
            }
        }
    }
}

impl News {
    /// The `News` that anything may have changed.
    pub fn everything() -> Self {
        Self { interfaces: true, routes: true, neighbours: BTreeSet::new(), is_incomplete: true }
    }

    fn add(&mut self, message: NetlinkMessage<Announcement>) {
        match message.payload {
            NetlinkPayload::InnerMessage(announcement) => match announcement {
                Announcement::Link => (self.interfaces, self.routes) = (true, true),
                Announcement::Hook => self.interfaces = true,
                Announcement::Route => self.routes = true,
                Announcement::Unmanaged(_) if self.neighbours.len() >= MAX_NEIGHBOURS => {
                    *self = Self::everything();
                }
                Announcement::Unmanaged(neighbour) => drop(self.neighbours.insert(neighbour)),
                Announcement::Other => {}
            },
            // The socket's buffer was full (ENOBUFS).
            NetlinkPayload::Overrun(_) => *self = Self::everything(),
            _ => {}
        }
    }
}

/// What a message announces. Only the type of most messages matters, so no more is decoded: a
/// routing daemon can announce thousands of routes in a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Announcement {
    /// A link or an address.
    Link,
    /// A TC filter or qdisc was removed.
    Hook,
    /// A route, a rule or a next-hop object.
    Route,
    /// This neighbour has no entry any more, or one that the kernel does not manage.
    Unmanaged(NextHop),
    Other,
}

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP` of linux/rtnetlink.h.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

impl NetlinkDeserializable for Announcement {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(match header.message_type {
            libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => Self::Link,
            // Not `RTM_NEWTFILTER`: Weir itself replaces its filters whenever it examines the
            // interfaces.
            libc::RTM_DELTFILTER | libc::RTM_DELQDISC => Self::Hook,
            libc::RTM_NEWROUTE
            | libc::RTM_DELROUTE
            | libc::RTM_NEWRULE
            | libc::RTM_DELRULE
            | RTM_NEWNEXTHOP
            | RTM_DELNEXTHOP => Self::Route,
            // A neighbour that the library cannot decode is not one of our next hops.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => match RouteNetlinkMessage::deserialize(header, payload) {
                Ok(RouteNetlinkMessage::NewNeighbour(message)) => {
                    neighbours::unmanaged(message).map_or(Self::Other, Self::Unmanaged)
                }
                Ok(RouteNetlinkMessage::DelNeighbour(message)) => {
                    neighbours::next_hop(&message).map_or(Self::Other, Self::Unmanaged)
                }
                Ok(_) | Err(_) => Self::Other,
            },
            _ => Self::Other,
        })
    }
}

/// Nothing is ever sent over this connection, but its type requires this implementation.
impl NetlinkSerializable for Announcement {
    fn message_type(&self) -> u16 {
        libc::NLMSG_NOOP as u16
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn announcement(kind: u16) -> NetlinkMessage<Announcement> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        let announcement = Announcement::deserialize(&header, &[]).unwrap();
        NetlinkMessage::new(header, NetlinkPayload::InnerMessage(announcement))
    }

    fn unmanaged(number: u32) -> NetlinkMessage<Announcement> {
        let next_hop = (1, std::net::Ipv4Addr::from_bits(number).into());
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(Announcement::Unmanaged(next_hop)))
    }

    #[test]
    fn kind_of_message_says_what_must_be_looked_at() {
        for (kind, interfaces, routes) in [
            (libc::RTM_NEWLINK, true, true),
            (libc::RTM_DELADDR, true, true),
            (libc::RTM_DELTFILTER, true, false),
            (libc::RTM_NEWTFILTER, false, false),
            (libc::RTM_NEWROUTE, false, true),
            (libc::RTM_DELRULE, false, true),
            (RTM_NEWNEXTHOP, false, true),
        ] {
            let mut news = News::default();
            news.add(announcement(kind));
            assert_eq!((news.interfaces, news.routes, news.is_incomplete), (interfaces, routes, false), "{kind}");
        }
    }

    #[test]
    fn lost_announcements_and_too_many_neighbours_mean_everything() {
        let mut news = News::default();
        news.add(NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(Vec::new())));
        assert_eq!(news, News::everything());

        let mut news = News::default();
        (0..4096).for_each(|number| news.add(unmanaged(number)));
        assert_eq!((news.neighbours.len(), news.is_incomplete), (4096, false));
        news.add(unmanaged(4096));
        assert_eq!(news, News::everything());
    }

    #[tokio::test(start_paused = true)]
    async fn storm_is_told_once_in_a_window_and_whole() {
        // One announcement a millisecond, for a second, and then none.
        let storm = stream::iter(0..1000).then(|number| async move {
            sleep(Duration::from_millis(1)).await;
            unmanaged(number)
        });
        let (tell, news) = mpsc::channel(1);
        tokio::spawn(gather(Box::pin(storm.chain(stream::pending())), tell));
        let mut changes = Changes(news);
        let mut told = Vec::new();
        while let Ok(Some(news)) = tokio::time::timeout(Duration::from_secs(1), changes.next()).await {
            told.push(news.neighbours.len());
        }
        assert_eq!(told.iter().sum::<usize>(), 1000);
        assert!((40..=55).contains(&told.len()), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn news_grows_while_nobody_takes_it() {
        let (tell, news) = mpsc::channel(1);
        let slow = stream::iter(0..500).then(|number| async move {
            sleep(Duration::from_millis(1)).await;
            unmanaged(number)
        });
        tokio::spawn(gather(Box::pin(slow.chain(stream::pending())), tell));
        let mut changes = Changes(news);
        sleep(Duration::from_secs(5)).await;
        let (first, second) = (changes.next().await.unwrap(), changes.next().await.unwrap());
        assert_eq!(first.neighbours.len() + second.neighbours.len(), 500);
    }
}
