//! Conflicts between services: the same rules for every source.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::service::Service;

/// The addresses and ports that a service claims, as far as they are known. `P` is the position of
/// a value in the file, or `()` where positions are not needed.
#[derive(Clone, Debug)]
pub struct Claims<P> {
    pub name: String,
    pub port: Option<u16>,
    pub vips: Vec<(IpAddr, P)>,
    pub backends: Vec<Server<P>>,
}

#[derive(Clone, Debug)]
pub struct Server<P> {
    pub address: IpAddr,
    pub tunnel: Option<IpAddr>,
    pub at: P,
}

impl<P> Claims<P> {
    /// The addresses of the backends and of their tunnels, with their positions.
    fn servers(&self) -> impl Iterator<Item = (Role, IpAddr, &P)> {
        self.backends.iter().flat_map(|Server { address, tunnel, at }| {
            let roles = [(Role::Backend, Some(*address)), (Role::Tunnel, *tunnel)];
            roles.into_iter().filter_map(move |(role, address)| Some((role, address?, at)))
        })
    }
}

impl Claims<()> {
    pub fn of(service: &Service) -> Self {
        let server =
            |backend: &super::Backend| Server { address: backend.address.ip(), tunnel: backend.tunnel, at: () };
        Self {
            name: service.name.to_string(),
            port: Some(service.port),
            vips: service.vips.iter().map(|vip| (*vip, ())).collect(),
            backends: service.backends.iter().map(server).collect(),
        }
    }
}

/// Two claims that exclude each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict<P> {
    /// The position of the value to correct.
    pub at: P,
    pub why: Why<P>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why<P> {
    /// The VIP and port are already served, by another service or by this one; `first` is the
    /// position of the earlier claim.
    Served {
        vip: SocketAddr,
        by: String,
        first: P,
    },
    /// Packets to the backend would be balanced again, or would never reach a server.
    BackendIsVip {
        address: IpAddr,
        of: String,
    },
    TunnelIsVip {
        tunnel: IpAddr,
        of: String,
    },
    SnatIsVip {
        address: IpAddr,
    },
}

impl<P> fmt::Display for Why<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Served { vip, by, .. } => write!(f, "{vip} is served by service {by} already"),
            Why::BackendIsVip { address, of } => {
                write!(f, "{address} is a VIP of service {of}; name the server's own address")
            }
            Why::TunnelIsVip { tunnel, of } => {
                write!(f, "the tunnel {tunnel} is a VIP of service {of}: a tunnel ends at a server")
            }
            Why::SnatIsVip { address } => {
                write!(f, "{address} is a VIP: replies to it could not be told from clients' connections")
            }
        }
    }
}

/// The claims of all services so far.
#[derive(Clone, Debug)]
pub struct Together<P> {
    snat: BTreeMap<IpAddr, P>,
    served: BTreeMap<SocketAddr, (String, P)>,
    /// Every VIP, with the service that named it first.
    vips: BTreeMap<IpAddr, String>,
    /// By address: the backends and tunnels that have it.
    servers: BTreeMap<IpAddr, Vec<(Role, P)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Backend,
    Tunnel,
}

impl Role {
    fn conflict<P>(self, address: IpAddr, of: String, at: P) -> Conflict<P> {
        let why = match self {
            Role::Backend => Why::BackendIsVip { address, of },
            Role::Tunnel => Why::TunnelIsVip { tunnel: address, of },
        };
        Conflict { at, why }
    }
}

impl<P: Clone> Together<P> {
    /// Begins without services. `snat` are the SNAT addresses, which must not be VIPs.
    pub fn new(snat: impl IntoIterator<Item = (IpAddr, P)>) -> Self {
        Self {
            snat: snat.into_iter().collect(),
            served: BTreeMap::new(),
            vips: BTreeMap::new(),
            servers: BTreeMap::new(),
        }
    }

    /// Adds the service. Returns all of its conflicts, within itself and with the services added
    /// before.
    pub fn add(&mut self, claims: &Claims<P>) -> Vec<Conflict<P>> {
        let conflicts = self.conflicts(claims);
        for (vip, at) in &claims.vips {
            if let Some(port) = claims.port {
                let vip = SocketAddr::new(*vip, port);
                self.served.entry(vip).or_insert_with(|| (claims.name.clone(), at.clone()));
            }
            self.vips.entry(*vip).or_insert_with(|| claims.name.clone());
        }
        for (role, address, at) in claims.servers() {
            self.servers.entry(address).or_default().push((role, at.clone()));
        }
        conflicts
    }

    /// All conflicts that the service would have, within itself and with the services added so far.
    pub fn conflicts(&self, claims: &Claims<P>) -> Vec<Conflict<P>> {
        let mut conflicts = Vec::new();
        let mut own: BTreeMap<IpAddr, &P> = BTreeMap::new();
        for (vip, at) in &claims.vips {
            let own = own.insert(*vip, at).map(|first| (claims.name.clone(), first.clone()));
            let served = claims.port.map(|port| SocketAddr::new(*vip, port));
            let taken = served.and_then(|served| Some((served, self.served.get(&served).cloned().or(own.clone())?)));
            if let Some((vip, (by, first))) = taken {
                conflicts.push(Conflict { at: at.clone(), why: Why::Served { vip, by, first } });
            }
            if own.is_some() || self.vips.contains_key(vip) {
                continue;
            }
            if let Some(at) = self.snat.get(vip) {
                conflicts.push(Conflict { at: at.clone(), why: Why::SnatIsVip { address: *vip } });
            }
            for (role, at) in self.servers.get(vip).into_iter().flatten() {
                conflicts.push(role.conflict(*vip, claims.name.clone(), at.clone()));
            }
        }
        for (role, address, at) in claims.servers() {
            let of = self.vips.get(&address).or_else(|| own.contains_key(&address).then_some(&claims.name));
            conflicts.extend(of.map(|of| role.conflict(address, of.clone(), at.clone())));
        }
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(name: &str, vip: &str, backends: &[(&str, Option<&str>)]) -> Claims<String> {
        let at = |what: &str| format!("{name} {what}");
        let server = |(address, tunnel): &(&str, Option<&str>)| Server {
            address: address.parse().unwrap(),
            tunnel: tunnel.map(|tunnel| tunnel.parse().unwrap()),
            at: at(address),
        };
        Claims {
            name: name.to_owned(),
            port: Some(80),
            vips: vec![(vip.parse().unwrap(), at(vip))],
            backends: backends.iter().map(server).collect(),
        }
    }

    fn found(services: &[Claims<String>]) -> Vec<String> {
        let mut together = Together::new([("192.0.2.9".parse().unwrap(), "snat".to_owned())]);
        let conflicts = services.iter().flat_map(|one| together.add(one));
        conflicts.map(|one| format!("{}: {}", one.at, one.why)).collect()
    }

    #[test]
    fn conflicts_are_found_whichever_service_comes_first() {
        let web = claims("web", "192.0.2.1", &[("10.0.0.1", None)]);
        let shop = claims("shop", "192.0.2.2", &[("10.0.0.1", None), ("192.0.2.1", Some("192.0.2.2"))]);
        assert_eq!(found(&[web.clone(), claims("shop", "192.0.2.2", &[("10.0.0.1", None)])]), Vec::<String>::new());
        let mut expected = vec![
            "shop 192.0.2.1: 192.0.2.1 is a VIP of service web; name the server's own address".to_owned(),
            "shop 192.0.2.1: the tunnel 192.0.2.2 is a VIP of service shop: a tunnel ends at a server".to_owned(),
        ];
        assert_eq!(found(&[web.clone(), shop.clone()]), expected);
        expected.reverse();
        assert_eq!(found(&[shop, web.clone()]), expected);
        let again = claims("again", "192.0.2.1", &[]);
        assert_eq!(found(&[web, again]), ["again 192.0.2.1: 192.0.2.1:80 is served by service web already"]);
        let snat = found(&[claims("web", "192.0.2.9", &[])]);
        assert!(snat.len() == 1 && snat[0].starts_with("snat: 192.0.2.9 is a VIP"), "{snat:?}");
    }
}
