//! Hosts that die, and hosts that only say that they are not well.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use lb_userspace::state::Health;
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    churn::Truth,
    config::AgentConfig,
    crowd::{Crowd, Kind, Spec, Story},
    load::Outcome,
    reckoning::Reckoning,
    segments::{Segment, Watch},
};

use crate::{
    churn::client_of,
    scene::{HEALTH, seconds},
    stage::Stage,
};

const SERVERS: u16 = 5;

#[test]
fn nat_dead_host_clients_are_reset_at_their_next_packet_and_an_unwell_one_keeps_its_connections() -> Result<()> {
    dead_host_clients_are_reset(Layout::Routed)
}

#[test]
fn dsr_l2_dead_host_clients_are_reset_at_their_next_packet_and_an_unwell_one_keeps_its_connections() -> Result<()> {
    dead_host_clients_are_reset(Layout::SharedL2)
}

#[test]
fn dsr_ipip_dead_host_clients_are_reset_at_their_next_packet_and_an_unwell_one_keeps_its_connections() -> Result<()> {
    dead_host_clients_are_reset(Layout::Tunnelled)
}

/// s2 loses its link; s3 says 503.
fn dead_host_clients_are_reset(layout: Layout) -> Result<()> {
    let bed = Bed::new(layout, SERVERS)?;
    let mut config = AgentConfig::web(&bed, SERVERS, HEALTH);
    config.services[0].on_dead = Some("reset");
    let stage = Stage::with(bed, &config)?;
    let bed = &stage.bed;
    let specs = VIPS.map(|vip| Spec { target: SocketAddr::new(vip, 80), talkers: 100, silent: 100, passers: 0 });
    let crowd = Crowd::start(&bed.client, &specs)?;
    let capture = Watch::start(bed, &bed.client, "eth0", "tcp port 80")?;
    seconds(0.5);
    let killed_at = Instant::now();
    bed.servers[1].ip("link set eth0 down")?;
    stage.echo.set_healthy(3, false);
    for vip in VIPS {
        stage.agent.wait_health(bed.backend(2, vip), Health::Dead, Duration::from_secs(20))?;
        stage.agent.wait_health(bed.backend(3, vip), Health::Down, Duration::from_secs(20))?;
    }
    // Seen here a little later than it was so in the maps.
    let dead_at = SystemTime::now();
    // The talkers' packets are sent again at intervals that double, so the next ones come within as
    // much time as has gone by.
    seconds(killed_at.elapsed().as_secs_f64() + 2.0);
    let stories = crowd.finish()?;
    let packets = capture.stop()?;

    let mut truth = Truth::new(Duration::from_secs(3600));
    VIPS.iter().for_each(|vip| truth.dies(bed.backend(2, *vip), killed_at));
    let reckoning = Reckoning::of(&stories, bed, &truth, |_, _| Err("no loss is excused here".to_owned()));
    eprintln!("{layout:?}\n{reckoning}");
    reckoning.expect_kept()?;
    let of_server =
        |name: &'static str| stories.iter().filter(move |story| story.record.server.as_deref() == Some(name));
    for kind in [Kind::Talker, Kind::Silent] {
        assert!(of_server("s3").filter(|story| story.kind == kind).count() > 10, "too few connections of s3");
        assert!(of_server("s2").filter(|story| story.kind == kind).count() > 10, "too few connections of s2");
    }
    let slow: Vec<String> = of_server("s2").filter_map(|story| not_reset_at_once(story, &packets, dead_at)).collect();
    assert!(
        slow.is_empty(),
        "{} connections of the dead host were not reset at once:\n{}",
        slow.len(),
        slow.join("\n")
    );
    Ok(())
}

/// What is wrong with how this connection of the dead host ended; `None` if nothing is.
fn not_reset_at_once(story: &Story, packets: &[Segment], dead_at: SystemTime) -> Option<String> {
    let client = client_of(&story.record);
    let own = || packets.iter().filter(move |packet| packet.from == client || packet.to == client);
    let sent = own().filter(|packet| packet.from == client && !packet.is_reset() && packet.at > dead_at).count();
    let resets = own().filter(|packet| packet.to == client && packet.is_reset()).count();
    if story.record.outcome == Outcome::Reset && resets > 0 && sent <= 1 {
        return None;
    }
    let kind = story.kind.name();
    Some(format!("{kind} {client}: {:?}, {sent} packets after it was dead, {resets} resets", story.record.outcome))
}
