//! Load through every service: new connections and ones that stay, in both families, each request
//! counted.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    bed::{Bed, VIPS},
    load::{Load, Mode, Record, Spec},
    process::wait_for,
    tally::{Tally, begun_between, expect_no_failure},
};

pub struct Traffic {
    flows: Vec<Flow>,
}

struct Flow {
    name: String,
    target: SocketAddr,
    mode: Mode,
    load: Load,
}

const SERVICES: [(&str, u16); 2] = [("dsr-l2", 80), ("nat", 8080)];
/// Long connections through each service, in each family.
const LONG: usize = 3;
/// A machine under emulation, whose only processor is busy with the verifier, takes its time; what
/// is lost on the way never comes.
const PATIENCE: Duration = Duration::from_secs(20);

impl Traffic {
    pub fn start(bed: &Bed) -> Result<Self> {
        let mut flows = Vec::new();
        for (service, port) in SERVICES {
            for vip in VIPS {
                let target = SocketAddr::new(vip, port);
                for (mode, what, workers, pause) in [(Mode::Short, "new", 1, 500), (Mode::Long, "long", LONG, 1500)] {
                    let spec = Spec { target, mode, workers, pause: Duration::from_millis(pause), timeout: PATIENCE };
                    let name = format!("{what} connections to {service} {target}");
                    flows.push(Flow { name, target, mode, load: Load::start(&bed.client, spec)? });
                }
            }
        }
        Ok(Self { flows })
    }

    /// Fails if anything failed so far, or if one kind of connections gets no more answers.
    pub fn goes_on(&self) -> Result<()> {
        let answers = |flow: &Flow| Tally::of(&flow.load.records()).requests;
        let before: Vec<u64> = self.flows.iter().map(answers).collect();
        for (flow, before) in self.flows.iter().zip(before) {
            wait_for(&format!("{} are answered", flow.name), PATIENCE, || {
                flow.expect_no_failure(&flow.load.records())?;
                Ok(answers(flow) > before)
            })?;
        }
        Ok(())
    }

    /// The servers that answered connections begun since then, in IPv4 through each service.
    pub fn servers_since(&self, then: Instant) -> Vec<(String, Tally)> {
        let short = self.flows.iter().filter(|flow| flow.mode == Mode::Short && flow.target.is_ipv4());
        short
            .map(|flow| (flow.name.clone(), Tally::of(begun_between(&flow.load.records(), then, Instant::now()))))
            .collect()
    }

    /// Ends it all; what it came to. Nothing may have failed.
    pub fn stop(self) -> Result<String> {
        let (mut connections, mut requests) = (0, 0);
        for Flow { name, target, mode, load } in self.flows {
            let records = load.stop()?;
            expect_no_failure(&records).context(name.clone())?;
            ensure!(mode == Mode::Short || records.len() <= LONG, "{name}: one was replaced");
            let tally = Tally::of(&records);
            ensure!(tally.requests > 0, "{name}: no answer from {target}");
            connections += tally.connections;
            requests += tally.requests;
        }
        Ok(format!("{connections} connections with {requests} requests, none lost, none failed"))
    }
}

impl Flow {
    fn expect_no_failure(&self, records: &[Record]) -> Result<()> {
        expect_no_failure(records).with_context(|| self.name.clone())
    }
}
