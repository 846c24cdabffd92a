//! Random changes of backends, made as a person would make them (by the file and by the CLI), and
//! the truth about which backends live.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    agent::Agent,
    bed::{Bed, VIPS},
    churn::change::{Backend, Change, Hand},
    config::{self, AgentConfig},
    echo::EchoServers,
    process::wait_for,
};

pub use truth::Truth;

mod change;
mod truth;

/// Over the service `web` of `config`, whose backends may be any of the bed's servers.
pub struct Churn<'a> {
    agent: &'a Agent,
    echo: &'a EchoServers,
    config: AgentConfig,
    random: fastrand::Rng,
    backends: BTreeMap<SocketAddr, Backend>,
    truth: Truth,
}

/// Backends of each family that must take new connections at any time, so that a refused one is a
/// failure.
const SERVING: usize = 4;

impl<'a> Churn<'a> {
    /// All servers of the bed are backends of `web` now. The seed decides what is changed; not to
    /// the millisecond when.
    pub fn new(bed: &Bed, agent: &'a Agent, echo: &'a EchoServers, config: &AgentConfig, seed: u64) -> Result<Self> {
        let service = config.services.first().context("the configuration has no service")?;
        let drain_timeout = service.drain_timeout.context("the truth needs a drainTimeout")?;
        let numbers = 1..=bed.servers.len() as u16;
        let of_server = |number| VIPS.map(|vip| (bed.backend(number, vip), Backend::new(number)));
        Ok(Self {
            agent,
            echo,
            config: config.clone(),
            random: fastrand::Rng::with_seed(seed),
            backends: numbers.flat_map(of_server).collect(),
            truth: Truth::new(drain_timeout),
        })
    }

    /// Makes `changes` changes within `time`, at random moments and sometimes several at once.
    pub fn run(&mut self, changes: usize, time: Duration) -> Result<()> {
        let began = Instant::now();
        let mut made = 0;
        while made < changes {
            let at_once = self.random.usize(1..=3).min(changes - made);
            let mut by_file = false;
            for _ in 0..at_once {
                by_file |= self.change()? == Hand::File;
                made += 1;
            }
            if by_file {
                self.publish()?;
            }
            let share = (made as f64 - self.random.f64() * at_once as f64) / changes as f64;
            let due = began + time.mul_f64(share);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Which backends lived; what was changed.
    pub fn into_truth(self) -> Truth {
        self.truth
    }

    /// Decides on a change. What the CLI does is done at once, what the file says is published by
    /// the caller.
    fn change(&mut self) -> Result<Hand> {
        let (address, change) = self.choose();
        let now = Instant::now();
        self.truth.note(now, address, change);
        let backend = self.backends.get_mut(&address).context("a backend that is not of this bed")?;
        let was_draining = backend.is_draining();
        backend.take(change, now);
        let is_draining = backend.is_draining();
        if is_draining && !was_draining {
            self.truth.drains(address, now);
        }
        let number = backend.number;
        let selector = format!("web/{address}");
        match change {
            Change::Drain(Hand::Cli) => drop(self.agent.cli(&["drain", &selector])?),
            Change::Undrain(Hand::Cli) => drop(self.agent.cli(&["undrain", &selector])?),
            Change::Weight(Hand::Cli, weight) => {
                drop(self.agent.cli(&["set", "weight", &selector, &weight.to_string()])?);
            }
            Change::FileWeight => drop(self.agent.cli(&["set", "weight", &selector, "--reset"])?),
            Change::Sick | Change::Well => {
                let is_well = change == Change::Well;
                self.echo.set_healthy(number, is_well);
                let same_server = self.backends.values_mut().filter(|other| other.number == number);
                same_server.for_each(|other| other.take(change, now));
            }
            Change::Add => {
                // What a person set by the CLI is kept while the backend drains; whether it was
                // gone by now is not known here.
                self.publish()?;
                self.agent.cli(&["undrain", &selector])?;
                self.agent.cli(&["set", "weight", &selector, "--reset"])?;
            }
            Change::Drain(Hand::File)
            | Change::Undrain(Hand::File)
            | Change::Weight(Hand::File, _)
            | Change::Remove => {}
        }
        if was_draining && !is_draining {
            if change.hand() == Hand::File && change != Change::Add {
                self.publish()?;
            }
            self.truth.serves(address, Instant::now());
        }
        Ok(change.hand())
    }

    /// A random backend and a change that leaves enough of its family serving.
    fn choose(&mut self) -> (SocketAddr, Change) {
        let addresses: Vec<SocketAddr> = self.backends.keys().copied().collect();
        loop {
            let address = addresses[self.random.usize(..addresses.len())];
            let options = self.backends[&address].options(&mut self.random);
            let change = options[self.random.usize(..options.len())];
            if self.leaves_enough(address, change) {
                return (address, change);
            }
        }
    }

    fn leaves_enough(&self, address: SocketAddr, change: Change) -> bool {
        let now = Instant::now();
        let mut after = self.backends.clone();
        let number = after[&address].number;
        let concerned = |other: &SocketAddr, backend: &Backend| {
            *other == address || (matches!(change, Change::Sick | Change::Well) && backend.number == number)
        };
        after
            .iter_mut()
            .filter(|(other, backend)| concerned(other, backend))
            .for_each(|(_, one)| one.take(change, now));
        [true, false].into_iter().all(|v4| {
            let family = || after.iter().filter(|(address, _)| address.is_ipv4() == v4).map(|(_, backend)| backend);
            // A file in which no backend has a weight is refused, whatever the CLI has set.
            family().any(Backend::has_file_weight) && family().filter(|backend| backend.serves(now)).count() >= SERVING
        })
    }

    /// Writes the file and lets the agent know by one of the ways that there are; returns when it
    /// is in force.
    fn publish(&mut self) -> Result<()> {
        let before = self.agent.status()?.config.loaded_at;
        let web = self.config.services.first_mut().context("the configuration has no service")?;
        web.backends = self.backends.iter().filter_map(|(address, backend)| backend.in_file(*address)).collect();
        let text = self.config.to_string();
        if std::fs::read_to_string(&self.agent.config_file).is_ok_and(|old| old == text) {
            return Ok(());
        }
        config::write(&self.agent.config_file, &text)?;
        match self.random.u8(..3) {
            0 => drop(self.agent.cli(&["reload"])?),
            1 => self.agent.reload()?,
            // The agent watches the file.
            _ => {}
        }
        wait_for("the new file is in force", Duration::from_secs(10), || {
            let config = self.agent.status()?.config;
            anyhow::ensure!(config.last_reload_ok, "the file was refused: {}", config.errors.join("; "));
            Ok(config.loaded_at > before)
        })
        .map(drop)
    }
}
