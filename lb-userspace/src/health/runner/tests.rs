//! Tests the runner against real servers on loopback, and its schedule on paused time against model
//! servers: with paused time, tokio's clock jumps ahead while real packets are still in flight.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    health::probe::FailureKind,
    model::{HttpProbe, Probe},
    state::ServiceName,
};

struct Bed {
    targets: watch::Sender<Vec<ProbeTarget>>,
    events: mpsc::Receiver<HealthEvent>,
    views: HealthViews,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

fn start(targets: Vec<ProbeTarget>, concurrency: usize, prober: Option<Prober>) -> Bed {
    start_hooked(targets, concurrency, prober, Arc::new(|_| Box::new(|_| {})))
}

fn start_hooked(targets: Vec<ProbeTarget>, concurrency: usize, prober: Option<Prober>, durations: Durations) -> Bed {
    let (targets, received) = watch::channel(targets);
    let (sender, events) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let mut runner = Runner::new(received, sender, Options { concurrency, durations });
    if let Some(prober) = prober {
        runner.prober = prober;
    }
    Bed { targets, events, views: runner.views(), running: tokio::spawn(runner.run(shutdown.clone())), shutdown }
}

impl Bed {
    async fn event(&mut self) -> HealthEvent {
        timeout(Duration::from_secs(60), self.events.recv()).await.expect("an event in time").expect("a runner")
    }
}

fn check(interval_ms: u64, timeout_ms: u64) -> HealthCheck {
    let (interval, timeout) = (Duration::from_millis(interval_ms), Duration::from_millis(timeout_ms));
    HealthCheck { probe: Probe::Tcp, interval, timeout, fall: 3, rise: 2 }
}

fn target(service: &str, address: SocketAddr, check: HealthCheck, initial: Health) -> ProbeTarget {
    ProbeTarget { id: BackendId { service: ServiceName::of_file(service), address }, check: check.into(), initial }
}

fn nowhere() -> SocketAddr {
    "192.0.2.1:80".parse().unwrap()
}

/// A model server: answers at once while `alive`, hangs otherwise, and records when it was probed.
fn modelled(alive: Arc<AtomicBool>, asked: Arc<Mutex<Vec<Instant>>>) -> Prober {
    Arc::new(move |_, check| {
        let (alive, asked) = (alive.clone(), asked.clone());
        Box::pin(async move {
            asked.lock().unwrap().push(Instant::now());
            if alive.load(Ordering::Relaxed) {
                return Outcome::Ok { duration: Duration::ZERO, detail: "connected".into() };
            }
            tokio::time::sleep(check.timeout).await;
            Outcome::Failed {
                duration: check.timeout,
                reason: FailureKind::Timeout,
                is_silent: false,
                detail: "no answer".into(),
            }
        })
    })
}

#[tokio::test(start_paused = true)]
async fn hung_backend_is_down_within_fall_intervals_and_a_timeout() {
    // Time-outs shorter and longer than the interval: the interval is measured from start to start.
    for check in [check(2000, 1000), check(1000, 1000), check(500, 2000)] {
        let bound = check.interval * check.fall + check.timeout;
        for killed_after in 0..40 {
            let alive = Arc::new(AtomicBool::new(true));
            let prober = modelled(alive.clone(), Arc::default());
            let mut bed = start(vec![target("web", nowhere(), check.clone(), Health::Unknown)], 64, Some(prober));
            assert_eq!(bed.event().await.health, Health::Up);
            tokio::time::sleep(Duration::from_millis(1000 + 97 * killed_after)).await;
            alive.store(false, Ordering::Relaxed);
            let killed = Instant::now();
            let event = bed.event().await;
            assert_eq!((event.health, event.consecutive), (Health::Down, 3));
            assert!(killed.elapsed() <= bound, "{:?} after its death, more than {bound:?}", killed.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn probes_begin_within_each_interval_but_not_in_step() {
    let asked = Arc::<Mutex<Vec<Instant>>>::default();
    let alive = Arc::new(AtomicBool::new(true));
    let check = check(1000, 500);
    let _bed = start(vec![target("web", nowhere(), check, Health::Up)], 64, Some(modelled(alive, asked.clone())));
    tokio::time::sleep(Duration::from_secs(100)).await;
    let asked = asked.lock().unwrap();
    let gaps: Vec<u128> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!((100..=112).contains(&asked.len()), "{} probes in 100 intervals", asked.len());
    assert!(gaps.iter().all(|gap| (900..=1000).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().max().unwrap() - gaps.iter().min().unwrap() > 40, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_probes_are_in_flight_than_allowed_and_waiting_is_not_probing() {
    let in_flight = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counted, peak) = (in_flight.clone(), most.clone());
    let prober: Prober = Arc::new(move |_, _| {
        let (counted, peak) = (counted.clone(), peak.clone());
        Box::pin(async move {
            peak.fetch_max(counted.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            counted.fetch_sub(1, Ordering::Relaxed);
            Outcome::Ok { duration: Duration::from_millis(100), detail: "connected".into() }
        })
    });
    let targets = (0..100).map(|n| target(&format!("s{n}"), nowhere(), check(1000, 500), Health::Unknown)).collect();
    let mut bed = start(targets, 7, Some(prober));
    for _ in 0..100 {
        assert_eq!(bed.event().await.health, Health::Up);
    }
    assert_eq!(most.load(Ordering::Relaxed), 7);
}

#[tokio::test(start_paused = true)]
async fn reload_keeps_the_state_of_targets_that_stay_and_drops_the_others() {
    let alive = Arc::new(AtomicBool::new(true));
    let stays = target("stays", nowhere(), check(1000, 500), Health::Unknown);
    let leaves = target("leaves", nowhere(), check(1000, 500), Health::Unknown);
    let prober = modelled(alive.clone(), Arc::default());
    let mut bed = start(vec![stays.clone(), leaves.clone()], 64, Some(prober));
    bed.event().await;
    bed.event().await;
    let before = bed.views.of(|_| true)[&stays.id].clone();

    let changed = ProbeTarget { check: HealthCheck { fall: 1, ..check(300, 200) }.into(), ..stays.clone() };
    bed.targets.send(vec![changed.clone()]).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(bed.views.of(|_| true).into_keys().eq([stays.id.clone()]), "the other one is forgotten");
    let after = bed.views.of(|_| true)[&stays.id].clone();
    assert_eq!((after.health, after.changes, after.last_change), (Health::Up, 1, before.last_change));

    alive.store(false, Ordering::Relaxed);
    let killed = Instant::now();
    let event = bed.event().await;
    assert_eq!((event.id, event.health, event.consecutive), (stays.id, Health::Down, 1));
    assert!(killed.elapsed() <= Duration::from_millis(500), "the new interval and time-out hold at once");
}

#[tokio::test(start_paused = true)]
async fn slow_listener_loses_no_event() {
    let targets: Vec<_> =
        (0..200).map(|n| target(&format!("s{n}"), nowhere(), check(1000, 500), Health::Unknown)).collect();
    let mut bed = start(targets.clone(), 64, Some(modelled(Arc::new(AtomicBool::new(true)), Arc::default())));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..200 {
        heard.insert(bed.event().await.id);
    }
    assert_eq!(heard.len(), 200);
    assert!(bed.events.try_recv().is_err(), "each backend changed once");
}

#[tokio::test]
async fn shutdown_ends_the_task_with_probes_in_flight() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs = HealthCheck {
        probe: Probe::Http(HttpProbe { path: "/".to_owned(), host: None, expect: (200, 200) }),
        ..check(1000, 60_000)
    };
    let bed = start(vec![target("web", listener.local_addr().unwrap(), hangs, Health::Unknown)], 4, None);
    let (_stream, _) = listener.accept().await.unwrap();
    bed.shutdown.cancel();
    timeout(Duration::from_secs(1), bed.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn real_server_that_is_killed_is_down_in_time_and_up_again_when_it_is_back() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = check(200, 100);
        let bound = check.interval * check.fall + check.timeout + Duration::from_millis(50);
        let mut bed = start(vec![target("web", address, check, Health::Unknown)], 4, None);
        assert_eq!(bed.event().await.health, Health::Up);
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(listener);
        let killed = Instant::now();
        let event = bed.event().await;
        assert!(killed.elapsed() < bound, "{:?}", killed.elapsed());
        assert_eq!((event.from, event.health, event.consecutive), (Health::Up, Health::Down, 3));
        assert!(event.reason.contains("refused"), "{}", event.reason);
        let view = bed.views.of(|service| *service == event.id.service)[&event.id].clone();
        assert_eq!((view.health, view.failures), (Health::Down, BTreeMap::from([(FailureKind::Refused, 3)])));
        let _listener = TcpListener::bind(address).await.unwrap();
        assert_eq!(bed.event().await.health, Health::Up);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_targets_are_probed_at_once_each_with_its_own_verdict() {
    let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let v6 = TcpListener::bind("[::1]:0").await.unwrap();
    let open = [v4.local_addr().unwrap(), v6.local_addr().unwrap()];
    for listener in [v4, v6] {
        tokio::spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
            }
        });
    }
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = refusing.local_addr().unwrap();
    drop(refusing);

    let measured = Arc::new(AtomicUsize::new(0));
    let counted = measured.clone();
    let durations: Durations = Arc::new(move |_| {
        let counted = counted.clone();
        Box::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        })
    });
    let address = |n: usize| if n % 4 == 3 { closed } else { open[n % 2] };
    let targets: Vec<_> =
        (0..2000).map(|n| target(&format!("s{n:04}"), address(n), check(1000, 900), Health::Unknown)).collect();
    let began = Instant::now();
    let mut bed = start_hooked(targets.clone(), MAX_CONCURRENCY, None, durations);
    let mut verdicts = BTreeMap::new();
    while verdicts.len() < targets.len() {
        let event = bed.event().await;
        assert!(verdicts.insert(event.id, event.health).is_none(), "one verdict each");
    }
    for (n, target) in targets.iter().enumerate() {
        let expected = if n % 4 == 3 { Health::Down } else { Health::Up };
        assert_eq!(verdicts[&target.id], expected, "{}", target.id);
    }
    assert!(measured.load(Ordering::Relaxed) >= 3000, "every probe is measured");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
