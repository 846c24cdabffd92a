//! Which flow lives where, and whether an answer of the system is right; of how the system works it
//! knows nothing.

use std::{collections::BTreeMap, fmt};

use super::{
    Admin, BACKENDS, CLOSING_TIMEOUT, DRAIN_TIMEOUT, Declared, ESTABLISHED_TIMEOUT, Event, FLOWS, HALF_OPEN_TIMEOUT,
    Health, Kind, OnDead, Outcome, Packet, Plan, SETTLE_TIME, System, World,
};

/// How often each thing happened that makes a run worth its time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats(pub BTreeMap<&'static str, u64>);

impl Stats {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Stats) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(&counts.join(", "))
    }
}

/// What went wrong, and how it came to that.
#[derive(Clone, Debug)]
pub struct Violation {
    pub what: String,
    pub log: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        write!(f, "{}", self.what)
    }
}

/// Runs a plan against a system that knows no flow and no backend yet.
pub fn run(system: &mut impl System, plan: &Plan) -> Result<Stats, Violation> {
    let mut truth = Truth::new(plan.on_dead);
    system.reconcile(&truth.world);
    for event in &plan.events {
        truth.log.push(Line::Event(truth.now, *event));
        if let Err(what) = truth.happens(*event, system) {
            return Err(Violation { what, log: truth.log.iter().map(ToString::to_string).collect() });
        }
    }
    Ok(truth.stats)
}

pub struct Truth {
    world: World,
    now: u64,
    flows: Vec<Flow>,
    lives: [Life; BACKENDS as usize],
    sequences: u32,
    stats: Stats,
    log: Vec<Line>,
}

enum Line {
    Event(u64, Event),
    Packet(Packet, Outcome),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Event(now, event) => write!(f, "{now:>4} s  {event:?}"),
            Line::Packet(Packet { flow, kind, sequence }, outcome) => {
                write!(f, "          {kind:?} of flow {flow} ({sequence:08x}): {outcome:?}")
            }
        }
    }
}

/// A backend as its flows know it.
#[derive(Clone, Copy, Default)]
struct Life {
    /// It serves; or it is declared and doesn't.
    is_serving: bool,
    /// Declared, or draining.
    is_there: bool,
    draining_since: Option<u64>,
    /// Counts its lives.
    number: u32,
}

/// A backend in one of its lives.
type Home = (u8, u32);

#[derive(Clone)]
struct Flow {
    state: State,
    /// Of its SYN.
    sequence: u32,
    /// How far its data is past that.
    offset: u32,
    /// The last SYN that somebody else sent for it.
    spoofed: u32,
    last: u64,
}

#[derive(Clone, PartialEq)]
enum State {
    Closed,
    /// Those that got its SYN, in turn.
    Opening(Vec<Home>),
    Open {
        home: Home,
        /// It was silent for too long, or its backend did not serve for a time: from then on its
        /// packets may go anywhere.
        is_excused: bool,
        /// The client said FIN.
        is_shut: bool,
        /// Somebody sent a reset in its name since its last data.
        is_reset: bool,
    },
}

impl Truth {
    fn new(on_dead: OnDead) -> Self {
        let flow = Flow { state: State::Closed, sequence: 0, offset: 0, spoofed: 0, last: 0 };
        let mut truth = Self {
            world: World::new(on_dead),
            now: 1000,
            flows: vec![flow; FLOWS.into()],
            lives: Default::default(),
            sequences: 0,
            stats: Stats::default(),
            log: Vec::new(),
        };
        truth.live();
        truth
    }

    fn happens(&mut self, event: Event, system: &mut impl System) -> Result<(), String> {
        match event {
            Event::Open(flow) if self.flow(flow).state == State::Closed => self.opens(flow, system),
            Event::Reopen(flow) if matches!(self.flow(flow).state, State::Open { .. }) => self.opens(flow, system),
            Event::Again(flow) => self.opens_again(flow, system),
            Event::Data(flow) => self.speaks(flow, system),
            Event::Everyone => {
                for flow in 0..FLOWS {
                    if matches!(self.flow(flow).state, State::Open { .. }) {
                        self.speaks(flow, system)?;
                    }
                }
                Ok(())
            }
            Event::Close(flow, first) => self.closes(flow, first, system),
            Event::Shut(flow) => self.shuts(flow, system),
            Event::Spoof(flow) => self.is_spoofed(flow, true, system),
            Event::SpoofAgain(flow) => self.is_spoofed(flow, false, system),
            Event::SpoofReset(flow) => {
                if let State::Open { is_reset, .. } = &mut self.flow_mut(flow).state {
                    *is_reset = true;
                    let sequence = self.new_sequence();
                    self.send(flow, Kind::Rst, sequence, system);
                }
                Ok(())
            }
            Event::Stray(flow) => {
                if self.flow(flow).state == State::Closed {
                    let sequence = self.new_sequence();
                    self.send(flow, Kind::Ack, sequence, system);
                }
                Ok(())
            }
            Event::Declare(backend) => self.change(backend, system, |declared| declared.is_declared = true),
            Event::Remove(backend) => self.change(backend, system, |declared| {
                *declared = Declared { is_declared: false, admin: Admin::Active, health: Health::Up, ..*declared }
            }),
            Event::Weigh(backend, weight) => self.change(backend, system, |declared| declared.weight = weight),
            Event::Drain(backend) => self.admit(backend, Admin::Draining, system),
            Event::Disable(backend) => self.admit(backend, Admin::Disabled, system),
            Event::Activate(backend) => self.admit(backend, Admin::Active, system),
            Event::Judge(backend, health) => self.judge(backend, health, system),
            Event::Blink(backend, flow) => {
                let before = self.world.backends[usize::from(backend)].health;
                self.judge(backend, Health::Down, system)?;
                if self.flow(flow).state == State::Closed {
                    self.opens(flow, system)?;
                }
                self.judge(backend, before, system)
            }
            Event::Wait(seconds) => {
                system.wait(seconds.into());
                self.now += u64::from(seconds);
                self.reconcile(system);
                Ok(())
            }
            Event::Pass => {
                self.excuse();
                while system.step() {}
                Ok(())
            }
            Event::Step => {
                self.excuse();
                system.step();
                Ok(())
            }
            Event::Restart => {
                self.stats.count("restarts");
                system.restart(&self.world);
                Ok(())
            }
            Event::Open(_) | Event::Reopen(_) => Ok(()),
        }
    }

    /// A SYN of a new connection.
    fn opens(&mut self, flow: u8, system: &mut impl System) -> Result<(), String> {
        self.stats.count("connections");
        let sequence = self.new_sequence();
        let now = self.now;
        *self.flow_mut(flow) =
            Flow { state: State::Opening(Vec::new()), sequence, offset: 0, spoofed: sequence, last: now };
        self.opens_again(flow, system)
    }

    /// Its SYN, the first or again.
    fn opens_again(&mut self, flow: u8, system: &mut impl System) -> Result<(), String> {
        let Flow { state, sequence, .. } = self.flow(flow).clone();
        match state {
            State::Closed => Ok(()),
            State::Open { is_shut: true, .. } | State::Open { is_reset: true, .. } => Ok(()),
            // Its fingerprint was overwritten: by nothing can it be told from a new connection's.
            State::Open { .. } if self.flow(flow).spoofed != sequence => Ok(()),
            // The network was slow with it; its backend ignores it, wherever it goes.
            State::Open { .. } => {
                self.send(flow, Kind::Syn, sequence, system);
                Ok(())
            }
            State::Opening(mut homes) => {
                let outcome = self.send(flow, Kind::Syn, sequence, system);
                match self.judge_syn(outcome) {
                    Ok(Some(home)) => {
                        homes.push(home);
                        self.flow_mut(flow).state = State::Opening(homes);
                        self.flow_mut(flow).last = self.now;
                    }
                    Ok(None) => self.flow_mut(flow).state = State::Closed,
                    Err(what) => return Err(self.explained(flow, &what, system)),
                }
                Ok(())
            }
        }
    }

    /// Where a SYN may go: to a backend that serves; a reset only if nobody gets new flows.
    fn judge_syn(&mut self, outcome: Outcome) -> Result<Option<Home>, String> {
        let eligible = (0..BACKENDS).any(|backend| self.world.is_eligible(backend));
        match outcome {
            Outcome::To(backend) if self.lives[usize::from(backend)].is_serving => {
                Ok(Some((backend, self.lives[usize::from(backend)].number)))
            }
            Outcome::Reset if !eligible => Ok(None),
            outcome => Err(format!("a SYN: {outcome:?}")),
        }
    }

    /// Data, or an acknowledgement of the backend's, behind a SYN that got through or later.
    fn speaks(&mut self, flow: u8, system: &mut impl System) -> Result<(), String> {
        self.is_answered(flow);
        let kind = match self.flow(flow).state {
            State::Closed => return Ok(()),
            State::Open { is_shut: true, .. } => Kind::Ack,
            _ => Kind::Data,
        };
        self.goes_on(flow, kind, system)
    }

    /// The client takes the answer of the first backend that got its SYN and serves.
    fn is_answered(&mut self, flow: u8) {
        if let State::Opening(homes) = &self.flow(flow).state {
            self.flow_mut(flow).state = match homes.first().copied() {
                Some(home) => State::Open { home, is_excused: false, is_shut: false, is_reset: false },
                None => State::Closed,
            };
        }
    }

    /// A packet of an established flow: here it is judged.
    fn goes_on(&mut self, flow: u8, kind: Kind, system: &mut impl System) -> Result<(), String> {
        let now = self.now;
        let Flow { sequence, offset, .. } = *self.flow(flow);
        // From the handshake on each is in order, and soon outside of the window in which a
        // half-open flow is confirmed.
        let outcome = self.send(flow, kind, sequence.wrapping_add(1).wrapping_add(offset), system);
        let is_serving = |home: Home, lives: &[Life]| {
            lives[usize::from(home.0)].is_serving && lives[usize::from(home.0)].number == home.1
        };
        let lives = self.lives;
        let State::Open { home, is_excused: was_excused, is_reset, .. } = &mut self.flow_mut(flow).state else {
            return Ok(());
        };
        let (home, was_excused) = (*home, *was_excused);
        if outcome == Outcome::To(home.0) && is_serving(home, &lives) {
            if kind == Kind::Data {
                *is_reset = false;
            }
            let flow = self.flow_mut(flow);
            flow.offset = flow.offset.saturating_add(if kind == Kind::Data { 40_000 } else { 0 });
            flow.last = now;
            self.stats.count(if was_excused { "kept though excused" } else { "kept" });
            return Ok(());
        }
        if was_excused || !is_serving(home, &lives) {
            self.stats.count(if is_serving(home, &lives) { "lost, and excused" } else { "lost with their backend" });
            self.flow_mut(flow).state = State::Closed;
            return Ok(());
        }
        Err(self.explained(flow, &format!("{kind:?} of a flow that lives on {}: {outcome:?}", home.0), system))
    }

    fn closes(&mut self, flow: u8, is_first: bool, system: &mut impl System) -> Result<(), String> {
        if !matches!(self.flow(flow).state, State::Open { .. }) {
            return Ok(());
        }
        if !is_first {
            self.goes_on(flow, Kind::Ack, system)?;
        }
        self.goes_on(flow, Kind::Fin, system)?;
        if is_first {
            self.goes_on(flow, Kind::Ack, system)?;
        }
        self.flow_mut(flow).state = State::Closed;
        Ok(())
    }

    fn shuts(&mut self, flow: u8, system: &mut impl System) -> Result<(), String> {
        if !matches!(self.flow(flow).state, State::Open { is_shut: false, .. }) {
            return Ok(());
        }
        self.goes_on(flow, Kind::Fin, system)?;
        if let State::Open { is_shut, .. } = &mut self.flow_mut(flow).state {
            *is_shut = true;
        }
        Ok(())
    }

    /// Of a flow that is closing the next SYN takes the tuple, whoever sends it.
    fn is_spoofed(&mut self, flow: u8, anew: bool, system: &mut impl System) -> Result<(), String> {
        if !matches!(self.flow(flow).state, State::Open { is_shut: false, is_reset: false, .. }) {
            return Ok(());
        }
        if anew || self.flow(flow).spoofed == self.flow(flow).sequence {
            self.flow_mut(flow).spoofed = self.new_sequence();
        }
        let sequence = self.flow(flow).spoofed;
        let outcome = self.send(flow, Kind::Syn, sequence, system);
        self.judge_syn(outcome).map(|_| ()).map_err(|what| self.explained(flow, &what, system))
    }

    fn admit(&mut self, backend: u8, admin: Admin, system: &mut impl System) -> Result<(), String> {
        self.change(backend, system, |declared| {
            if declared.is_declared {
                declared.admin = admin;
            }
        })
    }

    fn judge(&mut self, backend: u8, health: Health, system: &mut impl System) -> Result<(), String> {
        self.change(backend, system, |declared| {
            if declared.is_declared {
                declared.health = health;
            }
        })
    }

    fn change(
        &mut self,
        backend: u8,
        system: &mut impl System,
        change: impl FnOnce(&mut Declared),
    ) -> Result<(), String> {
        let before = self.world.clone();
        change(&mut self.world.backends[usize::from(backend)]);
        if self.world != before {
            self.stats.count("changes");
            self.reconcile(system);
        }
        Ok(())
    }

    fn reconcile(&mut self, system: &mut impl System) {
        self.live();
        system.reconcile(&self.world);
    }

    /// Who serves from now on, and what that means to flows.
    fn live(&mut self) {
        for backend in 0..BACKENDS {
            let declared = self.world.backends[usize::from(backend)];
            let would_serve = self.world.is_serving(backend);
            let now = self.now;
            let life = &mut self.lives[usize::from(backend)];
            let drains = life.is_there && !declared.is_declared || declared.admin == Admin::Draining;
            life.draining_since = if drains { Some(life.draining_since.unwrap_or(now)) } else { None };
            let is_over = life.draining_since.is_some_and(|since| now >= since + DRAIN_TIMEOUT);
            if declared.is_declared {
                life.number += u32::from(!life.is_there);
                life.is_there = true;
                life.is_serving = would_serve && !is_over;
            } else if life.is_there && (is_over || !life.is_serving) {
                *life = Life { number: life.number, ..Life::default() };
            }
        }
        let lives = self.lives;
        let serves = |home: &Home| lives[usize::from(home.0)].is_serving && lives[usize::from(home.0)].number == home.1;
        for flow in &mut self.flows {
            match &mut flow.state {
                State::Closed => {}
                State::Opening(homes) => {
                    homes.retain(|home| serves(home));
                    if homes.is_empty() {
                        flow.state = State::Closed;
                    }
                }
                State::Open { home, is_excused, .. } => *is_excused |= !serves(home),
            }
        }
    }

    /// The agent may settle now: it may forget who was silent for too long.
    fn excuse(&mut self) {
        self.stats.count("passes, or steps of one");
        for flow in &mut self.flows {
            let silent = self.now - flow.last;
            match &mut flow.state {
                State::Closed => {}
                State::Opening(_) => {
                    if silent >= HALF_OPEN_TIMEOUT.min(SETTLE_TIME) {
                        flow.state = State::Closed;
                    }
                }
                State::Open { home, is_excused, is_shut, is_reset } => {
                    let drains = self.lives[usize::from(home.0)].draining_since.is_some();
                    *is_excused |= silent >= ESTABLISHED_TIMEOUT
                        || (silent >= SETTLE_TIME && !drains)
                        || (silent >= CLOSING_TIMEOUT && (*is_shut || *is_reset));
                }
            }
        }
    }

    fn send(&mut self, flow: u8, kind: Kind, sequence: u32, system: &mut impl System) -> Outcome {
        self.stats.count("packets");
        let packet = Packet { flow, kind, sequence };
        let outcome = system.send(packet);
        self.log.push(Line::Packet(packet, outcome));
        outcome
    }

    fn explained(&mut self, flow: u8, what: &str, system: &mut impl System) -> String {
        format!("flow {flow}: {what}; {}", system.explain(flow))
    }

    /// Far from each other, as clients choose them.
    fn new_sequence(&mut self) -> u32 {
        self.sequences += 1;
        self.sequences.wrapping_mul(0x9e37_79b9)
    }

    fn flow(&self, flow: u8) -> &Flow {
        &self.flows[usize::from(flow)]
    }

    fn flow_mut(&mut self, flow: u8) -> &mut Flow {
        &mut self.flows[usize::from(flow)]
    }
}
