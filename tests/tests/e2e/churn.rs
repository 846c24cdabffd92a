//! Thousands of long-lived connections through scores of backend changes.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    churn::{Churn, Truth},
    config::AgentConfig,
    crowd::{Crowd, Kind, Spec, Story},
    echo::EchoServers,
    is_long,
    load::{Outcome, Record},
    reckoning::Reckoning,
    slots::{SlotHistory, SlotWatch},
};

use crate::{
    scene::{HEALTH, seconds},
    stage::Stage,
};

/// Of both families together.
const CONNECTIONS: usize = 2_000;
const SERVERS: u16 = 8;

/// So short that slots settle all the time.
const QUICK: Option<Duration> = Some(Duration::from_secs(2));
/// The agent's own, longer than the run: every slot that changes stays in transition.
const DEFAULT: Option<Duration> = None;

/// How many backends are changed in a run, and how long it takes.
struct Pace {
    changes: usize,
    time: Duration,
}

impl Pace {
    /// Where the settle time is short, slots settle between the changes, and when the drains are
    /// over, if there is time for it. `cargo xtask test --long` goes on two and a half times as
    /// long.
    fn of(layout: Layout, settle_time: Option<Duration>) -> Self {
        let settles = layout != Layout::Routed && settle_time.is_some();
        // What differs of `dsr-ipip` is the way to the backend, which half a run shows as well.
        let (changes, seconds) = match (settles, layout) {
            (true, Layout::Tunnelled) => (40, 24),
            (true, Layout::Routed | Layout::SharedL2) => (80, 48),
            (false, _) => (80, 20),
        };
        let times = if is_long() { 2.5 } else { 1.0 };
        Self { changes: (f64::from(changes) * times) as usize, time: Duration::from_secs(seconds).mul_f64(times) }
    }
}

const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn nat_keeps_every_connection_through_random_changes_with_a_short_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::Routed, QUICK)
}

/// In `nat` the settle time changes nothing: the run above with other random changes.
#[test]
#[ignore = "the same again: `cargo xtask test --long`"]
fn nat_keeps_every_connection_through_random_changes_with_the_default_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::Routed, DEFAULT)
}

#[test]
fn dsr_l2_keeps_every_connection_through_random_changes_with_a_short_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::SharedL2, QUICK)
}

#[test]
fn dsr_l2_keeps_every_connection_through_random_changes_with_the_default_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::SharedL2, DEFAULT)
}

#[test]
fn dsr_ipip_keeps_every_connection_through_random_changes_with_a_short_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::Tunnelled, QUICK)
}

/// What differs from `dsr-l2` above is the way to the backend, which the run above takes as well.
#[test]
#[ignore = "nearly the same again: `cargo xtask test --long`"]
fn dsr_ipip_keeps_every_connection_through_random_changes_with_the_default_settle_time() -> Result<()> {
    connections_survive_random_changes(Layout::Tunnelled, DEFAULT)
}

fn connections_survive_random_changes(layout: Layout, settle_time: Option<Duration>) -> Result<()> {
    let seed = seed();
    let Pace { changes, time } = Pace::of(layout, settle_time);
    let bed = Bed::new(layout, SERVERS)?;
    let mut config = AgentConfig::web(&bed, SERVERS, HEALTH);
    config.services[0].drain_timeout = Some(DRAIN_TIMEOUT);
    config.services[0].settle_time = settle_time;
    let stage = Stage::with(bed, &config)?;
    let crowd = Crowd::start(&stage.bed.client, &crowd_of(CONNECTIONS))?;
    let watch = SlotWatch::start(&stage.agent.pin_dir)?;
    let mut churn = Churn::new(&stage.bed, &stage.agent, &stage.echo, &config, seed)?;
    let changed = churn.run(changes, time).with_context(|| format!("seed {seed}"));
    seconds(2.0);
    let stories = crowd.finish()?;
    let slots = watch.stop()?;
    let truth = churn.into_truth();
    let reckoning =
        Reckoning::of(&stories, &stage.bed, &truth, |story, backend| may_be_forgotten(&slots, story, backend));
    let told = format!(
        "{layout:?}, settle time {settle_time:?}, seed {seed} (WEIR_SEED)\n  {}\n  {}\n{reckoning}",
        truth.summary(),
        slots.summary()
    );
    eprintln!("{told}");
    changed?;
    reckoning.expect_kept().context(told)?;
    expect_that_enough_was_seen(&reckoning, time);
    let excused: usize = reckoning.counts.values().map(|count| count.excused).sum();
    if settle_time == DEFAULT {
        assert_eq!(excused, 0, "nothing was silent for longer than the default settle time");
    } else if layout != Layout::Routed {
        // Again and again, each time some of the slots: every four seconds at least, each slot
        // every 40.
        let seconds = time.as_secs_f64();
        let is_enough = slots.times_settled() as f64 >= seconds * 0.3 && slots.settlings_per_slot() > seconds / 40.0;
        assert!(is_enough, "too few settlings to prove much: {}", slots.summary());
    }
    Ok(())
}

/// The documented limit: a flow that was silent while its slot left its backend and settled.
fn may_be_forgotten(slots: &SlotHistory, story: &Story, backend: SocketAddr) -> Result<(), String> {
    let Story { kind, record, .. } = story;
    if *kind != Kind::Silent {
        return Err("it was not silent".to_owned());
    }
    let client = client_of(record);
    let until = record.ended.unwrap_or_else(Instant::now);
    if slots.settled_elsewhere(client, record.target, backend, record.began, until) {
        return Ok(());
    }
    Err(slots.told(client, record.target, record.began))
}

/// The socket is bound to any address; this is the client's.
pub fn client_of(record: &Record) -> SocketAddr {
    let address: IpAddr =
        if record.target.is_ipv4() { [10, 1, 0, 2].into() } else { [0xfd01, 0, 0, 0, 0, 0, 0, 2].into() };
    SocketAddr::new(address, record.local.port())
}

/// A run in which most lost their backend, or nobody spoke, would prove little.
fn expect_that_enough_was_seen(reckoning: &Reckoning, time: Duration) {
    let seconds = time.as_secs();
    let (talkers, silent, new) =
        (reckoning.count(Kind::Talker), reckoning.count(Kind::Silent), reckoning.count(Kind::Passer));
    assert!(talkers.connections - talkers.with_backend >= CONNECTIONS / 2, "{reckoning}");
    assert!(silent.connections - silent.with_backend >= CONNECTIONS / 20, "{reckoning}");
    assert!(talkers.answers > CONNECTIONS as u64 * 3 / 4 * seconds, "{reckoning}");
    assert!(new.connections as u64 > 3 * seconds, "{reckoning}");
}

/// Three quarters talk, a quarter is silent; new ones come all the time.
fn crowd_of(connections: usize) -> Vec<Spec> {
    let silent = connections / VIPS.len() / 4;
    let talkers = connections / VIPS.len() - silent;
    VIPS.map(|vip| Spec { target: SocketAddr::new(vip, 80), talkers, silent, passers: 20 }).to_vec()
}

/// `WEIR_SEED`, to do the same changes again; else another one each time.
fn seed() -> u64 {
    std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..1_000_000))
}

#[test]
fn crowd_and_reckoning_tell_a_loss_from_an_end() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 2)?;
    let echo = EchoServers::start(&bed)?;
    let specs: Vec<Spec> = (1..=2)
        .flat_map(|number| VIPS.map(|vip| bed.backend(number, vip)))
        .map(|target| Spec { target, talkers: 15, silent: 5, passers: 10 })
        .collect();
    let crowd = Crowd::start(&bed.client, &specs)?;
    seconds(1.0);
    let died_at = Instant::now();
    echo.kill(2);
    seconds(1.0);
    let stories = crowd.finish()?;

    let mut truth = Truth::new(Duration::from_secs(10));
    let unknowing = Reckoning::of(&stories, &bed, &truth, |_, _| Err("no loss is excused here".to_owned()));
    let said = format!("{:#}", unknowing.expect_kept().expect_err("a server was killed"));
    assert!(said.contains("s2 = 10.2.0.12:8080 lived: never changed") && !said.contains("s1 ="), "{said}");

    VIPS.iter().for_each(|vip| truth.dies(bed.backend(2, *vip), died_at));
    let knowing = Reckoning::of(&stories, &bed, &truth, |_, _| Err("no loss is excused here".to_owned()));
    let talkers = knowing.count(Kind::Talker);
    assert_eq!((talkers.with_backend, knowing.count(Kind::Silent).with_backend), (30, 10), "{knowing}");
    // What is left are those that came when nobody listened.
    let refused = stories.iter().filter(|story| story.record.outcome == Outcome::Refused).count();
    assert!(refused > 30 && knowing.broken.len() == refused, "{refused} refused; {:?}", knowing.broken);
    assert!(talkers.answers > 30 * 15, "{knowing}");
    Ok(())
}
