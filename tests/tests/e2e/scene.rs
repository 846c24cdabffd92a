//! What most tests begin with: a bed with web servers and a ready agent, and load in both families.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout, VIPS},
    config::{AgentConfig, Health},
    load::{Load, Record, Spec},
    servers::Nginx,
    tally::expect_no_failure,
    witness::Witness,
};

pub const HEALTH: Health = Health::QUICK;

/// Fields are dropped in this order: the agent goes before its bed.
pub struct Scene {
    pub agent: Agent,
    pub web: Vec<Nginx>,
    pub witness: Witness,
    pub bed: Bed,
}

impl Scene {
    /// `servers` web servers, of which the first `configured` are backends; all are up.
    pub fn new(layout: Layout, servers: u16, configured: u16) -> Result<Self> {
        let bed = Bed::new(layout, servers)?;
        let config = AgentConfig::web(&bed, configured, HEALTH);
        Self::with(bed, &config)
    }

    pub fn with(bed: Bed, config: &AgentConfig) -> Result<Self> {
        let web = bed.start_web_servers()?;
        let witness = Witness::start(&bed)?;
        let agent = Agent::start(&bed, config)?;
        agent.wait_all_up()?;
        Ok(Self { agent, web, witness, bed })
    }

    /// Short and long connections to both VIPs; running when this returns.
    pub fn load(&self) -> Result<Vec<FamilyLoad>> {
        let load = VIPS.iter().map(|vip| FamilyLoad::start(&self.bed, *vip)).collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(load)
    }

    /// The backends of server `number`, of both families.
    pub fn backends(&self, number: u16) -> [SocketAddr; 2] {
        VIPS.map(|vip| self.bed.backend(number, vip))
    }
}

pub struct FamilyLoad {
    pub vip: IpAddr,
    pub short: Load,
    pub long: Load,
}

/// How many long connections run for each family.
pub const LONG: usize = 15;

impl FamilyLoad {
    pub fn start(bed: &Bed, vip: IpAddr) -> Result<Self> {
        let target = SocketAddr::new(vip, 80);
        let short = Load::start(&bed.client, Spec::short(target))?;
        let long = Load::start(&bed.client, Spec::long(target, LONG))?;
        Ok(Self { vip, short, long })
    }

    /// Ends it; the short connections and the long ones.
    pub fn stop(self) -> Result<(Vec<Record>, Vec<Record>)> {
        Ok((self.short.stop()?, self.long.stop()?))
    }
}

/// Ends the load, of which not one connection may have failed.
pub fn stop_without_failure(load: Vec<FamilyLoad>) -> Result<()> {
    for family in load {
        let vip = family.vip;
        let (short, long) = family.stop()?;
        assert!(short.len() > 50, "{vip}: only {} connections were made", short.len());
        expect_no_failure(&short).map_err(|error| error.context(format!("new connections to {vip}")))?;
        expect_no_failure(&long).map_err(|error| error.context(format!("long connections to {vip}")))?;
        assert_eq!(long.len(), LONG, "{vip}: a long connection was replaced");
    }
    Ok(())
}

pub fn seconds(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}
