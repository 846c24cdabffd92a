//! The bed itself, by plain kernel routing: if these fail, the others say nothing about Weir.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use weir_tests::{
    bed::{Bed, Layout, VIPS},
    load::{Load, Outcome, Spec},
    servers::iperf_server,
    tally::{Ejection, Tally, expect_no_failure},
    tools::{curl, iperf, url, wrk},
    witness::Witness,
};

#[test]
fn client_reaches_every_server_by_plain_routing_in_every_layout() -> Result<()> {
    for layout in [Layout::Routed, Layout::SharedL2, Layout::Tunnelled] {
        let bed = Bed::new(layout, 3)?;
        let _servers = bed.start_web_servers()?;
        for vip in VIPS {
            for number in 1..=3 {
                let page = curl(&bed.client, &url(bed.backend(number, vip), "/?n=7"))?;
                assert_eq!(page, format!("s{number} 7\n"), "{layout:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn router_spreads_connections_over_balancers_and_leaves_one_out_that_is_down() -> Result<()> {
    let bed = Bed::with_balancers(2, 1)?;
    let arrived = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
    for (netns, arrived) in bed.balancers().zip(&arrived) {
        netns.ip("addr add 192.0.2.10/32 dev lo\naddr add 2001:db8::10/128 dev lo nodad")?;
        let listener = netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)))??;
        let arrived = Arc::clone(arrived);
        // Ends with the process.
        std::thread::spawn(move || {
            for _ in listener.incoming().flatten() {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for vip in VIPS {
        let connect = |times: u32| -> Result<[u32; 2]> {
            for _ in 0..times {
                let target = SocketAddr::new(vip, 80);
                bed.client
                    .run(move || TcpStream::connect_timeout(&target, Duration::from_secs(3)))?
                    .context("refused")?;
            }
            std::thread::sleep(Duration::from_millis(50));
            Ok([0, 1].map(|at: usize| arrived[at].swap(0, Ordering::Relaxed)))
        };
        let both = connect(60)?;
        assert!(both.iter().all(|count| *count > 10), "{vip}: {both:?}");
        bed.more_lbs[0].ip("link set eth0 down")?;
        assert_eq!(connect(60)?, [60, 0], "{vip}: the second is down");
        bed.route_to_balancers(&[1])?;
        bed.bring_up_balancer(2)?;
        assert_eq!(connect(60)?, [60, 0], "{vip}: the second is up but left out");
        bed.route_to_balancers(&[1, 2])?;
        let both = connect(60)?;
        assert!(both.iter().all(|count| *count > 10), "{vip}: {both:?}");
    }
    Ok(())
}

#[test]
fn load_counts_what_a_killed_server_costs_and_the_witness_knows_whose_it_was() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 2)?;
    let mut servers = bed.start_web_servers()?;
    let witness = Witness::start(&bed)?;
    for vip in VIPS {
        let short = Load::start(&bed.client, Spec::short(bed.backend(2, vip)))?;
        let long = Load::start(&bed.client, Spec::long(bed.backend(2, vip), 5))?;
        let other = Load::start(&bed.client, Spec::long(bed.backend(1, vip), 5))?;
        std::thread::sleep(Duration::from_secs(1));
        let died_at = Instant::now();
        servers[1].kill()?;
        std::thread::sleep(Duration::from_millis(300));
        let revived_at = Instant::now();
        servers[1].restart()?;
        std::thread::sleep(Duration::from_secs(1));
        let (short, long, other) = (short.stop()?, long.stop()?, other.stop()?);

        expect_no_failure(&other)?;
        let lost = Tally::of(&long);
        assert_eq!(lost.lost, 5, "each long connection is lost once: {lost:?}");
        assert!(short.iter().any(|record| record.outcome == Outcome::Refused), "{:?}", Tally::of(&short));
        let ejection = Ejection::of(&short, &witness, "s2", died_at, revived_at - died_at + Duration::from_millis(500));
        ejection.expect_promised()?;
        let wrong = Ejection::of(&short, &witness, "s1", died_at, Duration::ZERO);
        assert!(wrong.elsewhere > 0 && wrong.late > 0 && wrong.expect_promised().is_err(), "{wrong:?}");
    }
    Ok(())
}

#[test]
fn common_load_generators_work_through_the_router() -> Result<()> {
    let bed = Bed::new(Layout::Routed, 1)?;
    let _servers = bed.start_web_servers()?;
    let _iperf = iperf_server(&bed.dir(), &bed.servers[0])?;
    for vip in VIPS {
        let web = bed.backend(1, vip);
        for keep_alive in [true, false] {
            let result = wrk(&bed.client, &url(web, "/"), 16, Duration::from_secs(1), keep_alive)?;
            assert_eq!(result.errors, 0, "{result:?}");
            assert!(result.requests > 100, "{result:?}");
        }
        assert!(iperf(&bed.client, web.ip(), Duration::from_secs(1), false)? > 1e8);
    }
    Ok(())
}
