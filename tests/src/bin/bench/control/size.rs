//! How much the agent is given to look after, and the configuration that says so.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use lb_common::limits::{MAX_BACKENDS, RING_ARENA_SLOTS};
use serde::Serialize;
use weir_tests::{
    bed::Bed,
    config::{AgentConfig, Backend, Health, Probe, Service},
};

/// The ring for which the targets were set.
const WANTED_RING: u32 = 4093;
/// The largest prime of which two rings for each of 1,000 services fit into the default arena.
const RING_WITHIN_DEFAULTS: u32 = 2089;

/// Of every service, and of its backends: DSR modes don't translate it.
pub const PORT: u16 = 80;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Nat,
    DsrIpip,
    /// Every other service `nat`, the others `dsr-ipip`.
    Mixed,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    pub services: u32,
    /// Of each service, half of them IPv4 and half IPv6.
    pub backends: u32,
    /// Slots of the ring of each family.
    pub ring: u32,
    pub mode: Mode,
    /// Whether the configuration asks for `limits` that fit, or does with the agent's own.
    pub limits: bool,
}

impl Size {
    pub fn new(services: u32, backends: u32, ring: Option<u32>, mode: Mode, limits: bool) -> Result<Self> {
        let ring = ring.unwrap_or(if limits { WANTED_RING } else { RING_WITHIN_DEFAULTS });
        let size = Self { services, backends, ring, mode, limits };
        ensure!(
            services > 0 && backends >= 2 && backends.is_multiple_of(2),
            "at least one service, an even number of backends"
        );
        ensure!(
            limits || (size.all_backends() < MAX_BACKENDS && size.slots() <= RING_ARENA_SLOTS),
            "{size} is more than the agent's own limits allow, {} backends and {RING_ARENA_SLOTS} slots: choose \
             fewer or smaller, or leave out --default-limits",
            MAX_BACKENDS - 1
        );
        Ok(size)
    }

    pub const fn all_backends(&self) -> u32 {
        self.services * self.backends
    }

    /// Of all rings together.
    pub const fn slots(&self) -> u32 {
        2 * self.services * self.ring
    }

    /// The whole configuration; with probes, if any are given.
    pub fn config(&self, bed: &Bed, health: Option<Health>) -> AgentConfig {
        let web = AgentConfig::web(bed, 1, Health::QUICK);
        let services = (0..self.services).map(|number| self.service(number, health)).collect();
        AgentConfig { services, limits: self.limits(), ..web }
    }

    /// What the configuration says of `limits`; nothing if the agent's own are enough.
    fn limits(&self) -> Option<String> {
        // Room for what is drained or made anew beside what there is.
        let (backends, slots) = ((self.all_backends() * 3 / 2).max(1024), (self.slots() * 5 / 4).max(1 << 20));
        self.limits.then(|| format!("backends: {backends}, ringSlots: {slots}"))
    }

    fn service(&self, number: u32, health: Option<Health>) -> Service {
        Service {
            name: name(number),
            vips: self.vips(number).iter().map(SocketAddr::ip).collect(),
            port: PORT,
            mode: match self.mode {
                Mode::Mixed if number.is_multiple_of(2) => "nat",
                Mode::Nat => "nat",
                Mode::DsrIpip | Mode::Mixed => "dsr-ipip",
            },
            source: "translate",
            affinity: "none",
            ring_size: Some(self.ring),
            health,
            drain_timeout: None,
            settle_time: None,
            on_dead: None,
            backends: (0..self.backends).map(|backend| Backend::new(self.backend(number, backend))).collect(),
        }
    }

    /// One of each family.
    pub fn vips(&self, service: u32) -> [SocketAddr; 2] {
        let v4 = IpAddr::from(Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 1, 0).to_bits() + service));
        let v6 =
            Ipv6Addr::from_bits(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0).to_bits() + u128::from(service) + 1);
        [v4, v6.into()].map(|vip| SocketAddr::new(vip, PORT))
    }

    /// The backend `number` of a service, from 0: an address that no other backend has. Those with
    /// even numbers are IPv4.
    pub fn backend(&self, service: u32, number: u32) -> SocketAddr {
        let place = service * self.backends + number;
        let ip: IpAddr = if number.is_multiple_of(2) {
            Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 1, 0).to_bits() + place).into()
        } else {
            Ipv6Addr::from_bits(Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 1, 0).to_bits() + u128::from(place)).into()
        };
        SocketAddr::new(ip, PORT)
    }
}

/// Where all backends are, for routes.
pub const BACKENDS_V4: &str = "10.64.0.0/10";
pub const BACKENDS_V6: &str = "fd64::/64";

/// The name of the service `number`, from 0.
pub fn name(number: u32) -> String {
    format!("s{number:04}")
}

/// TCP probes as a service has them that says nothing more, every so often.
pub fn probes(interval: Duration) -> Health {
    Health { probe: Probe::Tcp, interval, timeout: interval.min(Duration::from_secs(1)), fall: 3, rise: 2 }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { services, backends, ring, mode, limits } = self;
        let half = backends / 2;
        let mode = match mode {
            Mode::Nat => "all nat",
            Mode::DsrIpip => "all dsr-ipip",
            Mode::Mixed => "half nat, half dsr-ipip",
        };
        write!(f, "{services} services of {half} IPv4 and {half} IPv6 backends ({} in all), ", self.all_backends())?;
        write!(f, "rings of {ring} ({} slots in all), {mode}, ", self.slots())?;
        f.write_str(if *limits { "with `limits` in the configuration" } else { "within the agent's own limits" })
    }
}
