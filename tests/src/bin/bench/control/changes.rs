//! From a change to the last slot: of one backend by a request, of one in every service by the
//! configuration file, of many by verdicts of the probes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_tests::{
    agent::Agent,
    config::{AgentConfig, Health},
    http::Api,
};

use super::{
    scene::Scene,
    size::{self, Size},
    watch::{Owned, Turn, Watch},
};

/// How long a change may take before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// After so long no further change begins.
const ENOUGH: Duration = Duration::from_secs(60);
/// Odd and no multiple of the usual numbers of services: changes that follow each other are of
/// services far apart.
const STRIDE: u32 = 379;

/// Of each request: the time from sending it to the last slot, and to the answer.
#[derive(Default)]
pub struct Requests {
    pub seen: Vec<Duration>,
    pub answered: Vec<Duration>,
}

/// Drains one backend after the other and takes it back, `changes` changes in all or as many as
/// there is time for.
pub fn one_by_one(size: &Size, api: &mut Api, watch: &Watch, changes: u32) -> Result<Requests> {
    let mut times = Requests::default();
    let began = Instant::now();
    for number in (0..changes.div_ceil(2)).take_while(|_| began.elapsed() < ENOUGH) {
        let service = number.wrapping_mul(STRIDE) % size.services;
        let address = size.backend(service, number % size.backends);
        for (path, turn) in [("/v1/backends/drain", Turn::Left), ("/v1/backends/undrain", Turn::Back)] {
            let backend = json!({ "backend": format!("{}/{address}", size::name(service)) });
            let owned = watch.owned(address)?;
            let (seen, sent) = thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let sent = Instant::now();
                    api.post(path, &backend).map(|_| (sent, sent.elapsed()))
                });
                let seen = watch.wait([owned], turn, PATIENCE);
                (seen, sender.join())
            });
            let (sent, answered) = sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let seen = seen.with_context(|| format!("{path} {address}: its slots are not right in {PATIENCE:?}"))?;
            times.seen.push(seen - sent);
            times.answered.push(answered);
        }
    }
    Ok(times)
}

/// Rewrites the file so that one backend of every service drains, then so that none does, and so
/// on. The time of each from before the file is replaced to the last slot.
pub fn by_file(
    size: &Size,
    config: &AgentConfig,
    agent: &Agent,
    watch: &Watch,
    rewrites: u32,
) -> Result<Vec<Duration>> {
    let mut drained = config.clone();
    for (service, number) in drained.services.iter_mut().zip(0..) {
        let backend = service.backends.get_mut(number % size.backends as usize);
        backend.context("a service without backends")?.state = "draining";
    }
    let addresses = (0..size.services).map(|service| size.backend(service, service % size.backends));
    let owned: Vec<Owned<'_>> = addresses.map(|address| watch.owned(address)).collect::<Result<_>>()?;
    let mut times = Vec::new();
    for number in 0..rewrites {
        let (next, turn) = if number.is_multiple_of(2) { (&drained, Turn::Left) } else { (config, Turn::Back) };
        let began = Instant::now();
        agent.configure(next)?;
        let seen = watch.wait(owned.iter().copied(), turn, PATIENCE);
        let seen = seen.with_context(|| format!("not all slots followed the file in {PATIENCE:?}"))?;
        times.push(seen - began);
        // The next one meets an agent at rest.
        thread::sleep(Duration::from_secs(1));
    }
    Ok(times)
}

/// Lets the server refuse the probes of some backends, each of another service, and accept them
/// again, `rounds` times. The time of each verdict to its last slot.
pub fn by_verdicts(
    size: &Size,
    scene: &Scene,
    watch: &Watch,
    health: Health,
    backends: u32,
    rounds: u32,
) -> Result<Vec<Duration>> {
    let chosen: Vec<SocketAddr> = (0..backends.min(size.services))
        .map(|number| size.backend(number.wrapping_mul(STRIDE) % size.services, number % size.backends))
        .collect();
    let addresses: Vec<_> = chosen.iter().map(SocketAddr::ip).collect();
    let mut times = Vec::new();
    for _ in 0..rounds {
        for turn in [Turn::Left, Turn::Back] {
            match turn {
                Turn::Left => scene.refuse(&addresses)?,
                Turn::Back => scene.accept_again(&addresses)?,
            }
            let owned: Vec<Owned<'_>> = chosen.iter().map(|address| watch.owned(*address)).collect::<Result<_>>()?;
            let due = health.interval * health.fall.max(health.rise) + health.timeout;
            let seen = watch.wait_verdicts(owned, turn, due + PATIENCE)?;
            ensure!(seen.len() == chosen.len(), "of {} verdicts only {} came to their slots", chosen.len(), seen.len());
            times.extend(seen);
        }
    }
    Ok(times)
}
