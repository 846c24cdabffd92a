//! The bed with everything on it, and steady load in both families.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Result;
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIPS},
    config::{AgentConfig, Health},
    load::{Load, Record, Spec},
    servers::Nginx,
    witness::Witness,
};

pub const HEALTH: Health = Health::QUICK;

/// Connections that stay open all the while, for each family.
pub const LONG_CONNECTIONS: usize = 12;

pub struct Stage {
    pub load: Vec<FamilyLoad>,
    pub witness: Option<Witness>,
    pub agent: Agent,
    pub web: Vec<Nginx>,
    pub bed: Bed,
    pub began: Instant,
}

/// New connections and long ones to one VIP.
pub struct FamilyLoad {
    pub vip: IpAddr,
    pub short: Load,
    pub long: Load,
}

impl Stage {
    pub fn set() -> Result<Self> {
        let began = Instant::now();
        eprintln!("setting up: a client, a balancer and three web servers in network namespaces");
        let bed = Bed::new(Layout::Routed, 3)?;
        let web = bed.start_web_servers()?;
        let agent = Agent::start(&bed, &AgentConfig::web(&bed, 3, HEALTH))?;
        agent.wait_all_up()?;
        let witness = Witness::start(&bed)?;
        let load = VIPS.iter().map(|vip| FamilyLoad::start(&bed, *vip)).collect::<Result<_>>()?;
        let mut stage = Self { load, witness: Some(witness), agent, web, bed, began };
        // The long connections come up one after the other.
        stage.play_for(Duration::from_secs(1));
        Ok(stage)
    }

    /// Says what is done now.
    pub fn say(&self, what: &str) {
        eprintln!("[{:>3.0} s] {what}", self.began.elapsed().as_secs_f32());
    }

    /// Lets the load run.
    pub fn play_for(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    /// The server's backend in each family.
    pub fn backends(&self, number: u16) -> Vec<SocketAddr> {
        VIPS.iter().map(|vip| self.bed.backend(number, *vip)).collect()
    }

    pub fn end_load(&mut self) -> Result<()> {
        self.witness = None;
        for FamilyLoad { short, long, .. } in self.load.drain(..) {
            short.stop()?;
            long.stop()?;
        }
        Ok(())
    }
}

impl FamilyLoad {
    fn start(bed: &Bed, vip: IpAddr) -> Result<Self> {
        let target = SocketAddr::new(vip, 80);
        let short = Load::start(&bed.client, Spec::short(target))?;
        let long = Load::start(&bed.client, Spec::long(target, LONG_CONNECTIONS))?;
        Ok(Self { vip, short, long })
    }

    pub fn name(&self) -> &'static str {
        if self.vip.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// All connections so far: new ones, long ones.
    pub fn records(&self) -> (Vec<Record>, Vec<Record>) {
        (self.short.records(), self.long.records())
    }
}
