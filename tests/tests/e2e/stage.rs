//! A bed with echo servers, a ready agent and, where the mode needs it, Weir on the servers to open
//! tunnel packets.

use anyhow::Result;
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout},
    config::AgentConfig,
    echo::EchoServers,
};

/// Fields are dropped in this order: the agents go before their bed.
pub struct Stage {
    pub agent: Agent,
    _tunnel_ends: Vec<Agent>,
    pub echo: EchoServers,
    pub bed: Bed,
}

impl Stage {
    /// All backends of `web` are up, if they are probed.
    pub fn with(bed: Bed, config: &AgentConfig) -> Result<Self> {
        let echo = EchoServers::start(&bed)?;
        let tunnel_ends = if bed.layout == Layout::Tunnelled { start_tunnel_ends(&bed)? } else { Vec::new() };
        let agent = Agent::start(&bed, config)?;
        if config.services[0].health.is_some() {
            agent.wait_all_up()?;
        }
        Ok(Self { agent, _tunnel_ends: tunnel_ends, echo, bed })
    }
}

pub fn start_tunnel_ends(bed: &Bed) -> Result<Vec<Agent>> {
    let launch = |(number, netns)| {
        Agent::launch_beside(bed, netns, &format!("s{number}"), &AgentConfig::tunnel_end(bed, number))
    };
    let mut agents = (1..).zip(&bed.servers).map(launch).collect::<Result<Vec<_>>>()?;
    // Together they become ready sooner than one after the other.
    agents.iter_mut().try_for_each(Agent::wait_ready)?;
    Ok(agents)
}
