//! Two balancers behind a router that spreads connections over them by ECMP: one dies, and comes
//! back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use weir_tests::{
    agent::Agent,
    bed::{Bed, VIPS},
    churn::Truth,
    config::AgentConfig,
    crowd::{Crowd, Spec},
    echo::EchoServers,
    process::wait_for,
    reckoning::Reckoning,
    slots,
};

use crate::{
    scene::{HEALTH, seconds},
    stage::start_tunnel_ends,
};

const SERVERS: u16 = 6;
/// Talkers of each family; a tenth as many are silent.
const TALKERS: usize = 300;
const SETTLE_TIME: Duration = Duration::from_secs(2);

#[test]
fn dsr_ipip_balancer_that_dies_and_comes_back_costs_no_connection_once_changes_have_settled() -> Result<()> {
    let mut pair = Pair::new()?;
    // A change that stays, and one that is taken back while the crowd is there: its connections
    // agree with the ring again.
    pair.set_weight(2, 3)?;
    pair.wait_settled()?;
    let crowd = pair.crowd(TALKERS, 0)?;
    pair.drain(3)?;
    seconds(1.0);
    pair.undrain(3)?;
    pair.wait_settled()?;

    let before = pair.connections()?;
    // Only now: a connection that began during the drain would be an exception, of one balancer
    // alone.
    let passers = pair.crowd(0, 20)?;
    assert!(before.iter().all(|connections| *connections > 50), "ECMP does not spread: {before:?}");
    pair.kill_second()?;
    seconds(4.0);
    pair.second_comes_back()?;
    seconds(4.0);
    pair.expect_same_rings()?;
    let after = pair.connections()?;
    assert!(after[1] > 10, "nothing came to the balancer that came back: {after:?}");
    let (reckoning, of_passers) = (pair.reckon(crowd)?, pair.reckon(passers)?);
    eprintln!("connections through each balancer: {before:?}, later {after:?}\n{reckoning}{of_passers}");
    reckoning.expect_kept()?;
    of_passers.expect_kept()
}

#[test]
fn dsr_ipip_balancer_that_dies_during_a_change_costs_no_more_than_the_flows_of_slots_in_transition() -> Result<()> {
    let mut pair = Pair::new()?;
    pair.wait_settled()?;
    let crowd = pair.crowd(TALKERS, 20)?;
    pair.drain(3)?;
    let (slots, in_transition) = slots::in_transition(&pair.agents[0].pin_dir)?;
    assert!(in_transition > 0, "nothing is in transition");
    seconds(0.5);
    pair.kill_second()?;
    seconds(5.0);
    let reckoning = pair.reckon(crowd)?;
    let connections: usize = reckoning.counts.values().map(|count| count.connections).sum();
    let allowed = connections * in_transition / slots;
    let lost = reckoning.broken.len();
    eprintln!(
        "{lost} of {connections} connections lost; {in_transition} of {slots} slots in transition allow \
        {allowed}\n{reckoning}"
    );
    if lost > allowed {
        reckoning.expect_kept().with_context(|| format!("{lost} lost, {allowed} allowed"))?;
    }
    Ok(())
}

/// Two balancers with one configuration. Fields are dropped in this order: the agents go before
/// their bed.
struct Pair {
    agents: [Agent; 2],
    configs: [AgentConfig; 2],
    _tunnel_ends: Vec<Agent>,
    _echo: EchoServers,
    bed: Bed,
}

impl Pair {
    fn new() -> Result<Self> {
        let bed = Bed::with_balancers(2, SERVERS)?;
        let echo = EchoServers::start(&bed)?;
        let tunnel_ends = start_tunnel_ends(&bed)?;
        let mut config = AgentConfig::web(&bed, SERVERS, HEALTH);
        config.hash_seed = Some("00112233445566778899aabbccddeeff".to_owned());
        config.services[0].settle_time = Some(SETTLE_TIME);
        let second = AgentConfig { socket: bed.dir().join("second.sock"), ..config.clone() };
        let agents = [Agent::start(&bed, &config)?, Agent::start_beside(&bed, &bed.more_lbs[0], "lb2", &second)?];
        let pair = Self { agents, configs: [config, second], _tunnel_ends: tunnel_ends, _echo: echo, bed };
        pair.agents.iter().try_for_each(Agent::wait_all_up)?;
        Ok(pair)
    }

    /// Of each family; a tenth as many as talk are silent.
    fn crowd(&self, talkers: usize, passers: u32) -> Result<Crowd> {
        let specs = VIPS.map(|vip| Spec { target: SocketAddr::new(vip, 80), talkers, silent: talkers / 10, passers });
        let crowd = Crowd::start(&self.bed.client, &specs)?;
        seconds(1.0);
        Ok(crowd)
    }

    /// By the CLI of both balancers, as a person with two terminals would.
    fn order(&self, words: &[&str], server: u16, more: &[&str]) -> Result<()> {
        for vip in VIPS {
            let backend = format!("web/{}", self.bed.backend(server, vip));
            for agent in &self.agents {
                agent.cli(&[words, &[backend.as_str()], more].concat())?;
            }
        }
        Ok(())
    }

    fn drain(&self, server: u16) -> Result<()> {
        self.order(&["drain"], server, &[])
    }

    fn undrain(&self, server: u16) -> Result<()> {
        self.order(&["undrain"], server, &[])
    }

    /// In the file, which a balancer that has lost all else still has.
    fn set_weight(&mut self, server: u16, weight: u32) -> Result<()> {
        let changed = VIPS.map(|vip| self.bed.backend(server, vip));
        for (agent, config) in self.agents.iter().zip(&mut self.configs) {
            let backends = config.services[0].backends.iter_mut();
            backends.filter(|backend| changed.contains(&backend.address)).for_each(|backend| backend.weight = weight);
            agent.configure(config)?;
            agent.cli(&["reload"])?;
        }
        Ok(())
    }

    /// Until no slot of either balancer is in transition or tracked.
    fn wait_settled(&self) -> Result<()> {
        for agent in &self.agents {
            wait_for("all slots have settled", Duration::from_secs(20), || {
                let unsettled = slots::unsettled(&agent.pin_dir)?;
                anyhow::ensure!(unsettled == 0, "{unsettled} slots have not settled");
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// By what they publish for that.
    fn expect_same_rings(&self) -> Result<()> {
        let digests = |agent: &Agent| {
            let services = agent.services()?;
            Ok::<_, anyhow::Error>(services.into_iter().map(|view| (view.vip, view.ring_digest)).collect::<Vec<_>>())
        };
        let [one, other] = [digests(&self.agents[0])?, digests(&self.agents[1])?];
        assert!(one.len() == VIPS.len() && one.iter().all(|(_, digest)| !digest.is_empty()), "no digests: {one:?}");
        assert_eq!(one, other);
        Ok(())
    }

    /// The machine dies: its link goes down, and nothing is left of what it had in memory.
    fn kill_second(&mut self) -> Result<()> {
        self.bed.more_lbs[0].ip("link set eth0 down")?;
        self.agents[1].kill()
    }

    /// It boots while the router sends it nothing, and is used again when it is ready.
    fn second_comes_back(&mut self) -> Result<()> {
        self.bed.route_to_balancers(&[1])?;
        self.agents[1].cleanup()?;
        self.bed.bring_up_balancer(2)?;
        self.agents[1].start_again()?;
        self.agents[1].wait_all_up()?;
        self.bed.route_to_balancers(&[1, 2])
    }

    /// SYNs that each balancer has forwarded.
    fn connections(&self) -> Result<[u64; 2]> {
        let of =
            |agent: &Agent| Ok::<_, anyhow::Error>(agent.services()?.iter().map(|view| view.connections_total).sum());
        Ok([of(&self.agents[0])?, of(&self.agents[1])?])
    }

    fn reckon(&self, crowd: Crowd) -> Result<Reckoning> {
        let truth = Truth::new(Duration::from_secs(3600));
        Ok(Reckoning::of(&crowd.finish()?, &self.bed, &truth, |_, _| Err("no loss is excused here".to_owned())))
    }
}
