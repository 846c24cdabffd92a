//! A bed: a client, a balancer and servers, each in a network namespace of its own, with a bpffs
//! and files of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::{leftovers, netns::Netns, servers::Nginx, wiring};

/// Where the balancer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Between client and servers, with an arm to each: `nat`. Without Weir it is a plain router to
    /// the servers.
    Routed,
    /// Beside the servers, on their network; they hold the VIPs and answer past it: `dsr-l2`.
    SharedL2,
    /// On links of its own behind the router that the servers are behind as well; they hold the
    /// VIPs and answer past it: `dsr-ipip`.
    Tunnelled,
}

pub const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
pub const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
pub const VIPS: [IpAddr; 2] = [VIP_V4, VIP_V6];

/// The address of server `number`, from 1.
pub const fn server_v4(number: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 2, 0, 10 + number as u8))
}

/// `fd02::11` for server 1, so that both families read alike.
pub const fn server_v6(number: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0x10 + number))
}

/// The address of balancer `number`, from 1, in [`Layout::Tunnelled`], where each has a link of its
/// own to the router.
pub const fn balancer_v4(number: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 3, number as u8, 2))
}

pub const fn balancer_v6(number: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd03, number, 0, 0, 0, 0, 0, 2))
}

/// Removed whole when dropped.
pub struct Bed {
    pub id: String,
    pub layout: Layout,
    pub client: Netns,
    pub lb: Netns,
    /// More balancers, among which the router chooses by ECMP; only in [`Layout::Tunnelled`].
    pub more_lbs: Vec<Netns>,
    /// Between client and network, but in [`Layout::Routed`].
    pub router: Option<Netns>,
    pub switch: Netns,
    /// `s1`, `s2`, ...: see [`server_v4`] and [`server_v6`].
    pub servers: Vec<Netns>,
    kept: bool,
}

impl Bed {
    /// Beds may stand side by side, if their loads don't compete for the processors: which do,
    /// `cargo xtask test` knows.
    pub fn new(layout: Layout, servers: u16) -> Result<Self> {
        Self::with_layout(layout, 1, servers)
    }

    /// The same with several balancers behind a router that spreads connections over them.
    pub fn with_balancers(balancers: u16, servers: u16) -> Result<Self> {
        Self::with_layout(Layout::Tunnelled, balancers, servers)
    }

    fn with_layout(layout: Layout, balancers: u16, servers: u16) -> Result<Self> {
        let id = leftovers::new_id()?;
        let made = Self::make(&id, layout, balancers, servers);
        if made.is_err()
            && let Err(error) = leftovers::remove(&id)
        {
            eprintln!("warning: {error:#}");
        }
        let bed = made?;
        wiring::wire(&bed)?;
        Ok(bed)
    }

    fn make(id: &str, layout: Layout, balancers: u16, servers: u16) -> Result<Self> {
        let dir = leftovers::run_dir(id);
        for part in ["bpf", "state", "files"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("can't make {}", dir.join(part).display()))?;
        }
        let bpf = dir.join("bpf");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("can't mount a bpffs on {}", bpf.display()))?;
        let add = |role: &str| Netns::add(format!("weir-{id}-{role}"));
        Ok(Self {
            id: id.to_owned(),
            layout,
            client: add("client")?,
            lb: add("lb")?,
            more_lbs: (2..=balancers).map(|number| add(&format!("lb{number}"))).collect::<Result<_>>()?,
            router: if layout == Layout::Routed { None } else { Some(add("router")?) },
            switch: add("switch")?,
            servers: (1..=servers).map(|number| add(&format!("s{number}"))).collect::<Result<_>>()?,
            kept: false,
        })
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        [&self.client, &self.switch].into_iter().chain(self.balancers()).chain(&self.router).chain(&self.servers)
    }

    pub fn balancers(&self) -> impl Iterator<Item = &Netns> {
        std::iter::once(&self.lb).chain(&self.more_lbs)
    }

    /// Configuration, state, logs and bpffs of this bed.
    pub fn dir(&self) -> PathBuf {
        leftovers::run_dir(&self.id)
    }

    /// The balancer's interfaces on which Weir works.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.layout {
            Layout::Routed => &["eth0", "eth1"],
            Layout::SharedL2 | Layout::Tunnelled => &["eth0"],
        }
    }

    /// The port on which the web servers are reached behind the VIP; DSR can't translate it.
    pub fn backend_port(&self) -> u16 {
        match self.layout {
            Layout::Routed => 8080,
            Layout::SharedL2 | Layout::Tunnelled => 80,
        }
    }

    /// The web server `number` (from 1) as a backend, in the family of `vip`.
    pub fn backend(&self, number: u16, vip: IpAddr) -> SocketAddr {
        let address = if vip.is_ipv4() { server_v4(number) } else { server_v6(number) };
        SocketAddr::new(address, self.backend_port())
    }

    /// Starts a web server in every server's namespace.
    pub fn start_web_servers(&self) -> Result<Vec<Nginx>> {
        (1..).zip(&self.servers).map(|(number, netns)| Nginx::start(&self.dir(), netns, number)).collect()
    }

    /// In [`Layout::Tunnelled`]: the router sends what is for the VIPs to these balancers (from 1),
    /// by ECMP.
    pub fn route_to_balancers(&self, numbers: &[u16]) -> Result<()> {
        let router = self.router.as_ref().with_context(|| format!("the layout {:?} has no router", self.layout))?;
        wiring::route_to_balancers(router, numbers)
    }

    /// In [`Layout::Tunnelled`]: the link of this balancer (from 1) with all that the kernel forgot
    /// when it went down.
    pub fn bring_up_balancer(&self, number: u16) -> Result<()> {
        let netns = self.balancers().nth(usize::from(number) - 1);
        wiring::bring_up_balancer(netns.with_context(|| format!("there is no balancer {number}"))?, number)
    }

    /// Leaves the bed when this process ends; see [`leftovers::remove_kept`].
    pub fn keep(mut self) -> Result<()> {
        leftovers::keep(&self.id)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = leftovers::remove(&self.id)
        {
            eprintln!("warning: {error:#}");
        }
    }
}
