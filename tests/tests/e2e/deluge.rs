//! Floods of millions of flows against a service of a DSR mode: what they leave in the tables, and
//! what they do to connections.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    churn::Truth,
    config::AgentConfig,
    crowd::{self, Crowd},
    deluge::{self, Kind},
    is_long,
    process::{Running, wait_for},
    reckoning::Reckoning,
    servers::iperf_server,
    slots, tables,
    tools::iperf_at,
};

use crate::{
    scene::{HEALTH, seconds},
    stage::Stage,
};

/// Of each kind and family. Where no slot is in transition that is many times what every table has
/// room for; where a twentieth of the slots is, what they remember of it is more than SEEN and
/// HALF_OPEN have room for, which are smaller in the short form.
fn flows() -> u32 {
    if is_long() { 5_000_000 } else { 1_000_000 }
}

fn transient_flows() -> Option<u32> {
    (!is_long()).then_some(16_384)
}

const SERVERS: u16 = 10;
/// Talkers of each family.
const TALKERS: usize = 200;
/// A connection of each family that sends at this rate all the time.
const STREAM_BITS: u64 = 20_000_000;
const STREAM_TIME: Duration = Duration::from_secs(8);

#[test]
fn dsr_l2_floods_of_millions_of_flows_leave_no_entry_and_harm_nobody() -> Result<()> {
    flood_leaves_no_entry(Layout::SharedL2)
}

#[test]
fn dsr_ipip_floods_of_millions_of_flows_leave_no_entry_and_harm_nobody() -> Result<()> {
    flood_leaves_no_entry(Layout::Tunnelled)
}

fn flood_leaves_no_entry(layout: Layout) -> Result<()> {
    let place = Place::new(layout)?;
    let pin_dir = &place.stage.agent.pin_dir;
    let streams_before = place.streams().join()?;
    let crowd = place.crowd(10)?;
    assert_eq!(slots::in_transition(pin_dir)?.1, 0, "the service is not steady");
    let streams = place.streams();
    let (mut entries, mut told) = (0, String::new());
    place.flood(flows(), |poured| {
        let tables = tables::exceptions(pin_dir)?;
        entries += tables.values().sum::<u64>();
        told += &format!("{poured}; entries: {tables:?}\n");
        Ok(())
    })?;
    let streams = streams.join()?;
    let reckoning = place.reckon(crowd)?;
    eprintln!("{told}streams: {streams_before:.0?} bit/s before, {streams:.0?} bit/s in the flood\n{reckoning}");
    assert_eq!(entries, 0, "{told}");
    reckoning.expect_kept()?;
    for rate in streams {
        assert!(rate > 0.9 * STREAM_BITS as f64, "a stream of {STREAM_BITS} bit/s came down to {rate:.0} bit/s");
    }
    let talkers = reckoning.count(crowd::Kind::Talker);
    assert_eq!(talkers.connections, VIPS.len() * TALKERS, "{reckoning}");
    Ok(())
}

#[test]
fn dsr_ipip_floods_with_a_tenth_of_the_slots_in_transition_lose_no_established_connection() -> Result<()> {
    flood_in_transition_loses_nobody(Layout::Tunnelled)
}

#[test]
fn dsr_l2_floods_with_a_tenth_of_the_slots_in_transition_lose_no_established_connection() -> Result<()> {
    flood_in_transition_loses_nobody(Layout::SharedL2)
}

fn flood_in_transition_loses_nobody(layout: Layout) -> Result<()> {
    let place = Place::new(layout)?;
    let pin_dir = &place.stage.agent.pin_dir;
    let crowd = place.crowd(0)?;
    for vip in VIPS {
        place.stage.agent.cli(&["drain", &format!("web/{}", place.stage.bed.backend(SERVERS, vip))])?;
    }
    wait_for("slots are in transition", Duration::from_secs(5), || Ok(slots::in_transition(pin_dir)?.1 > 0))?;
    let (all, changed) = slots::in_transition(pin_dir)?;
    let share = changed as f64 / all as f64;
    // The other service has as many slots, and none of them in transition.
    assert!((0.03..0.08).contains(&share), "{changed} of {all} slots are in transition");
    let mut told = String::new();
    place.flood(flows(), |poured| {
        told += &format!("{poured}; entries: {:?}\n", tables::exceptions(pin_dir)?);
        Ok(())
    })?;
    assert_eq!(slots::in_transition(pin_dir)?.1, changed, "slots have settled meanwhile");
    let reckoning = place.reckon(crowd)?;
    eprintln!("{changed} of {all} slots in transition\n{told}{reckoning}");
    reckoning.expect_kept().context(told)?;
    assert_eq!(reckoning.count(crowd::Kind::Talker).connections, VIPS.len() * TALKERS, "{reckoning}");
    Ok(())
}

/// A stage with a door behind the balancer, and iperf beside the echo servers.
struct Place {
    _iperf: Vec<[Running; 2]>,
    stage: Stage,
}

impl Place {
    fn new(layout: Layout) -> Result<Self> {
        let bed = Bed::new(layout, SERVERS)?;
        let mut config = AgentConfig::web(&bed, SERVERS, HEALTH).with_iperf(&bed, SERVERS);
        // Without probes nothing changes but what a test changes, whatever the flood does to the
        // machine.
        config.services[0].health = None;
        config.transient_flows = transient_flows();
        let stage = Stage::with(bed, &config)?;
        let bed = &stage.bed;
        deluge::close_door(bed)?;
        let iperf = bed.servers.iter().map(|server| iperf_server(&bed.dir(), server)).collect::<Result<_>>()?;
        Ok(Self { _iperf: iperf, stage })
    }

    fn crowd(&self, passers: u32) -> Result<Crowd> {
        let specs = VIPS.map(|vip| {
            let target = SocketAddr::new(vip, 80);
            crowd::Spec { target, talkers: TALKERS, silent: 0, passers }
        });
        let crowd = Crowd::start(&self.stage.bed.client, &specs)?;
        seconds(1.0);
        Ok(crowd)
    }

    /// One kind after the other to each VIP; `look` is told of each and looks at the tables.
    fn flood(&self, flows: u32, mut look: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let bed = &self.stage.bed;
        for vip in VIPS {
            for kind in [Kind::Syn, Kind::Ack, Kind::SynAndAck] {
                let before = deluge::stopped(bed)?;
                let poured = deluge::pour(bed, (vip, 80).into(), kind, flows)?;
                let forwarded = deluge::stopped(bed)? - before;
                look(&format!(
                    "{kind:?} to {vip}: {} packets, {:.2} million a second, {forwarded} forwarded",
                    poured.packets,
                    poured.per_second() / 1e6
                ))?;
                // A flood that is lost before the balancer would prove nothing.
                assert!(
                    forwarded > poured.packets / 10 * 9,
                    "{kind:?} to {vip}: {forwarded} of {} came through",
                    poured.packets
                );
            }
        }
        Ok(())
    }

    fn streams(&self) -> Streams {
        let start = |vip| {
            let client = self.stage.bed.client.clone();
            std::thread::spawn(move || iperf_at(&client, vip, STREAM_TIME, STREAM_BITS))
        };
        let streams = Streams(VIPS.map(start).into());
        seconds(0.5);
        streams
    }

    fn reckon(&self, crowd: Crowd) -> Result<Reckoning> {
        let truth = Truth::new(Duration::from_secs(3600));
        Ok(Reckoning::of(&crowd.finish()?, &self.stage.bed, &truth, |_, _| Err("no loss is excused here".to_owned())))
    }
}

struct Streams(Vec<std::thread::JoinHandle<Result<f64>>>);

impl Streams {
    /// Bits a second of each.
    fn join(self) -> Result<Vec<f64>> {
        let join = |stream: std::thread::JoinHandle<Result<f64>>| match stream.join() {
            Ok(rate) => rate,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        self.0.into_iter().map(join).collect()
    }
}
