//! The program and the agent at the same time, which `promise` can't show: packets on one core;
//! changes, and settling and collecting, on the other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    flow::Family,
    slot::{REJECT, Slot},
};
use lb_userspace::{
    clock::boottime_ns,
    dataplane::{image::Write, rings::Rings, settle::settler::Settler},
};
use weir_tests::model::{Health, OnDead, Outcome, World};

use crate::{
    agent::{Agent, Shape},
    bed::{self, Interfaces},
    frames::{ACK, FIN, SYN, Segment},
    kernel::Program,
    sandbox::sandbox,
};

/// Rings of other sizes, one after the other, whose ranges are wiped as soon as the agent may use
/// them again: a program that went by what it remembers of a service for longer would find nobody
/// there.
#[test]
fn no_service_is_remembered_for_longer_than_its_ring_is_there() {
    let seconds = std::env::var("WEIR_RACE_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    sandbox(async move |sandbox| {
        let on = bed::make();
        let settle_time = Duration::from_secs(60);
        let shape = Shape { families: Family::BOTH.to_vec(), slots: SLOTS, settle_time, waits: true };
        let program = Program::load(sandbox.bpffs());
        let mut agent = Agent::new(program.pin_dir(), shape, on);
        let world = World::new(OnDead::Next);
        agent.reconcile(&world, boottime_ns());
        let is_over = AtomicBool::new(false);
        let send = |family: Family, port: u16| {
            let client = SocketAddr::new(bed::client(family).ip(), port);
            for flags in [SYN, ACK] {
                let segment = Segment::new(client, bed::web(family), flags).sequence(fastrand::u32(..), 0);
                let outcome = program.show(on, &segment.frame());
                assert!(matches!(outcome, Outcome::To(_)), "{family:?} {flags:#x}: {outcome:?}");
            }
        };
        let (mut changes, mut packets) = (0_usize, 0_u64);
        thread::scope(|threads| {
            let sender = threads.spawn(|| {
                let mut sent = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let port = 20_000 + (sent % 10_000) as u16;
                    Family::BOTH.iter().for_each(|family| send(*family, port));
                    sent += 4;
                }
                sent
            });
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(seconds) && !sender.is_finished() {
                let before = agent.programmed.ranges();
                agent.set_slots([13, 17, 29, 101][changes % 4]);
                agent.reconcile(&world, boottime_ns());
                agent.maps.apply(&Write::GracePeriod).unwrap();
                let used = agent.programmed.ranges();
                let is_used = |at: u32| used.iter().any(|(offset, len)| (*offset..offset + len).contains(&at));
                let freed = before.iter().flat_map(|(offset, len)| *offset..offset + len).filter(|at| !is_used(*at));
                for at in freed {
                    agent.maps.apply(&Write::Ring { offset: at, slots: vec![Slot::settled(REJECT)] }).unwrap();
                }
                changes += 1;
            }
            is_over.store(true, Ordering::Relaxed);
            packets = sender.join().unwrap();
        });
        println!("{changes} changes, {packets} packets");
        assert!(changes > 20 && packets > 10_000, "{changes} changes, {packets} packets");
    });
}

const FLOWS: u16 = 48;
const SLOTS: u32 = 13;
const SETTLE_TIME: Duration = Duration::from_millis(600);
/// A flow that was silent for so long may be lost: this machine did not give the sender a turn. A
/// slot's clock counts tenths of seconds.
const SILENT: Duration = Duration::from_millis(450);

#[test]
fn no_flow_is_moved_while_its_slot_changes_and_settles_beside_the_program() {
    let seconds = std::env::var("WEIR_RACE_SECONDS").map_or(20, |seconds| seconds.parse().unwrap());
    sandbox(async move |sandbox| {
        let on = bed::make();
        let shape = Shape { families: Family::BOTH.to_vec(), slots: SLOTS, settle_time: SETTLE_TIME, waits: true };
        let program = Program::load(sandbox.bpffs());
        let mut agent = Agent::new(program.pin_dir(), shape, on);
        let mut settler = Settler::open(program.pin_dir(), Rings::open(program.pin_dir()).unwrap().into()).unwrap();
        let mut world = World::new(OnDead::Next);
        agent.reconcile(&world, boottime_ns());
        let scope = Mutex::new(agent.scope());
        let is_over = AtomicBool::new(false);

        let (sent, passes, changes) = thread::scope(|threads| {
            let sender = threads.spawn(|| Sender::new(program, on).run(&is_over));
            let settling = threads.spawn(|| {
                let mut passes = BTreeMap::<&str, u64>::new();
                while !is_over.load(Ordering::Relaxed) {
                    let scope = scope.lock().unwrap().clone();
                    let census = settler.pass(&scope, boottime_ns()).unwrap();
                    for (what, count) in [
                        ("passes", 1),
                        ("settled", census.settled),
                        ("collected", census.collected),
                        ("removed", census.removed),
                    ] {
                        *passes.entry(what).or_default() += count;
                    }
                }
                passes
            });
            let (begun, mut changes) = (Instant::now(), 0_u64);
            while begun.elapsed() < Duration::from_secs(seconds) && !sender.is_finished() {
                change(&mut world);
                agent.reconcile(&world, boottime_ns());
                *scope.lock().unwrap() = agent.scope();
                changes += 1;
                // Now and then long enough for everything to settle.
                let pause = if changes % 200 == 0 { 900_000 } else { fastrand::u64(0..3000) };
                thread::sleep(Duration::from_micros(pause));
            }
            is_over.store(true, Ordering::Relaxed);
            (sender.join().unwrap(), settling.join().unwrap(), changes)
        });
        println!("{sent:?}; {passes:?}; {changes} changes");
        for (what, least) in [("settled", 20), ("collected", 20), ("passes", 20)] {
            assert!(passes[what] >= least, "nothing was tried: {passes:?}");
        }
        assert!(sent.opened > 1000 && changes > 200, "nothing was tried: {sent:?}, {changes} changes");
    });
}

/// Somebody is down, or up again, or has another weight. Nobody dies: so every flow has its backend
/// to the end.
fn change(world: &mut World) {
    let at = fastrand::usize(0..world.backends.len());
    let backend = &mut world.backends[at];
    backend.is_declared = true;
    match fastrand::u8(0..4) {
        0 => backend.weight = fastrand::u8(1..4),
        1 => backend.health = Health::Up,
        _ => backend.health = Health::Down,
    }
    if !world.backends.iter().any(|backend| backend.is_declared && backend.health == Health::Up) {
        world.backends[at].health = Health::Up;
    }
}

/// What the sender did.
#[derive(Debug, Default)]
struct Sent {
    packets: u64,
    opened: u64,
    closed: u64,
    /// For which there was no turn in time.
    excused: u64,
}

struct Sender {
    program: Program,
    on: Interfaces,
    flows: Vec<Flow>,
    sent: Sent,
}

struct Flow {
    client: SocketAddr,
    vip: SocketAddr,
    /// Where its SYN went; `None`: closed.
    home: Option<u8>,
    sequence: u32,
    offset: u32,
    is_confirmed: bool,
    last: Instant,
    log: Vec<String>,
}

impl Sender {
    fn new(program: Program, on: Interfaces) -> Self {
        let flow = |family: Family, number: u16| Flow {
            client: SocketAddr::new(bed::client(family).ip(), 20_000 + number),
            vip: bed::web(family),
            home: None,
            sequence: 0,
            offset: 0,
            is_confirmed: false,
            last: Instant::now(),
            log: Vec::new(),
        };
        let flows = Family::BOTH.into_iter().flat_map(|family| (0..FLOWS).map(move |number| flow(family, number)));
        Self { program, on, flows: flows.collect(), sent: Sent::default() }
    }

    /// Until it is over, or a flow is lost: that is a panic.
    fn run(mut self, is_over: &AtomicBool) -> Sent {
        while !is_over.load(Ordering::Relaxed) {
            for at in 0..self.flows.len() {
                self.turn(at);
            }
        }
        self.sent
    }

    /// Something that a client does.
    fn turn(&mut self, at: usize) {
        let flow = &mut self.flows[at];
        let Some(home) = flow.home else {
            if fastrand::u8(0..8) == 0 {
                self.opens(at);
            }
            return;
        };
        if flow.last.elapsed() > SILENT {
            self.sent.excused += 1;
            flow.home = None;
            return;
        }
        match fastrand::u8(0..200) {
            0 => {
                self.goes_on(at, home, FIN | ACK, b"");
                self.flows[at].home = None;
                self.sent.closed += 1;
            }
            // Somebody else, from its address. Between SYN and ACK nothing could tell the two
            // apart.
            1 if flow.is_confirmed => drop(self.shows(at, SYN, fastrand::u32(..), b"")),
            2..20 => self.goes_on(at, home, ACK, b""),
            _ => self.goes_on(at, home, ACK, b"some data"),
        }
    }

    fn opens(&mut self, at: usize) {
        let sequence = fastrand::u32(..);
        let flow = &mut self.flows[at];
        (flow.sequence, flow.offset, flow.is_confirmed, flow.last) = (sequence, 0, false, Instant::now());
        flow.log.clear();
        match self.shows(at, SYN, sequence, b"") {
            Outcome::To(backend) => self.flows[at].home = Some(backend),
            outcome => panic!("a SYN, while every backend serves: {outcome:?}"),
        }
        self.sent.opened += 1;
    }

    fn goes_on(&mut self, at: usize, home: u8, flags: u8, payload: &[u8]) {
        let flow = &self.flows[at];
        let sequence = flow.sequence.wrapping_add(1).wrapping_add(flow.offset);
        let outcome = self.shows(at, flags, sequence, payload);
        let flow = &mut self.flows[at];
        let silent = flow.last.elapsed();
        (flow.last, flow.is_confirmed) = (Instant::now(), true);
        flow.offset = flow.offset.saturating_add(payload.len() as u32 * 100);
        if outcome != Outcome::To(home) && silent < SILENT {
            panic!(
                "a flow that lives on {home} went elsewhere: {outcome:?}, {:?} → {}\n{}",
                flow.client,
                flow.vip,
                flow.log.join("\n")
            );
        }
    }

    fn shows(&mut self, at: usize, flags: u8, sequence: u32, payload: &[u8]) -> Outcome {
        let flow = &self.flows[at];
        let segment = Segment::new(flow.client, flow.vip, flags).sequence(sequence, 0).payload(payload);
        let outcome = self.program.show(self.on, &segment.frame());
        self.sent.packets += 1;
        let flow = &mut self.flows[at];
        // The last of them are enough to see what led to it.
        if flow.log.len() > 40 {
            flow.log.drain(..20);
        }
        flow.log.push(format!(
            "{:>9} µs  flags {flags:#x} sequence {sequence:08x}: {outcome:?}",
            flow.last.elapsed().as_micros()
        ));
        outcome
    }
}
