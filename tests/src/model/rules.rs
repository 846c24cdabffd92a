//! The rules of the ring (docs/architecture.md) in plain Rust: one node, tables without end, time
//! by the second. The kernel's program and the agent must behave like this.

use std::collections::BTreeMap;

use lb_common::{exception::CONFIRM_WINDOW, hash::mix};

use super::{Admin, BACKENDS, DRAIN_TIMEOUT, Kind, OnDead, Outcome, Packet, SLOTS, System, World};

mod pass;

/// One that can be left out; then the promise must break.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// A second change keeps `previous`.
    PreviousStays,
    /// A change back leaves the slot tracked.
    ReturnIsTracked,
    /// `previous` that is gone leaves the slot tracked.
    GoneIsTracked,
    /// A SYN leaves its entry in HALF_OPEN.
    SynIsNoted,
    /// A half-open flow is confirmed by its sequence number.
    ConfirmedBySequence,
    /// A confirmed flow has an entry that is asked first.
    EstablishedIsAsked,
    /// A miss goes to `previous`.
    MissGoesToPrevious,
    /// A miss is noted in SEEN, and established when its slot settles.
    SeenIsKept,
    /// A SYN sent again follows its first.
    SynAgainFollows,
    /// A SYN of a flow in ESTABLISHED goes there, and replaces nothing.
    SynFollowsEstablished,
    /// A SYN of a flow in SEEN goes there, and replaces nothing.
    SynFollowsSeen,
    /// A SYN takes the tuple of a flow that is closing.
    SynReplacesClosing,
    /// Data restores what a reset shortened.
    DataRestores,
    /// Each packet restarts an entry's idle time.
    PacketsRefresh,
    /// An entry of a backend that does not serve is a miss.
    OnlyTheServing,
    /// A slot settles when its time has come.
    SettleTime,
    /// A draining `previous` keeps its slots.
    DrainingKeeps,
    /// While a slot settles SEEN is asked.
    SettlingAsksSeen,
    /// Entries that differ from the ring stay.
    DifferentStays,
    /// A slot with entries stays tracked.
    TrackedUntilNone,
    /// What is written while the collector looks keeps the slot tracked.
    WrittenMark,
}

impl Rule {
    pub const ALL: [Rule; 21] = [
        Rule::PreviousStays,
        Rule::ReturnIsTracked,
        Rule::GoneIsTracked,
        Rule::SynIsNoted,
        Rule::ConfirmedBySequence,
        Rule::EstablishedIsAsked,
        Rule::MissGoesToPrevious,
        Rule::SeenIsKept,
        Rule::SynAgainFollows,
        Rule::SynFollowsEstablished,
        Rule::SynFollowsSeen,
        Rule::SynReplacesClosing,
        Rule::DataRestores,
        Rule::PacketsRefresh,
        Rule::OnlyTheServing,
        Rule::SettleTime,
        Rule::DrainingKeeps,
        Rule::SettlingAsksSeen,
        Rule::DifferentStays,
        Rule::TrackedUntilNone,
        Rule::WrittenMark,
    ];
}

/// A backend in one of its lives; never used for another. 0 is `reject`.
type Owner = usize;
const REJECT: Owner = 0;

pub struct Rules {
    without: Option<Rule>,
    now: u64,
    on_dead: OnDead,
    owners: Vec<Backend>,
    slots: Vec<Slot>,
    established: Table,
    half_open: Table,
    seen: Table,
    /// Sequence number and owner of the last SYN of a flow.
    syns: BTreeMap<u8, (u32, Owner)>,
    pass: pass::Pass,
}

#[derive(Clone, Copy, Debug)]
struct Backend {
    name: u8,
    is_serving: bool,
    /// Draining, or removed: it keeps its slots as long as it serves.
    drains_since: Option<u64>,
    is_gone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    current: Owner,
    previous: Owner,
    is_tracked: bool,
    is_settling: bool,
    is_collecting: bool,
    is_written: bool,
    /// When its owners last agreed.
    since: u64,
}

type Table = BTreeMap<u8, Entry>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    owner: Owner,
    /// Of its SYN.
    sequence: u32,
    is_closing: bool,
    last: u64,
}

impl Slot {
    fn is_settled(&self) -> bool {
        self.current == self.previous && !self.is_tracked
    }
}

impl Rules {
    pub fn new(without: Option<Rule>) -> Self {
        let slot = Slot {
            current: REJECT,
            previous: REJECT,
            is_tracked: false,
            is_settling: false,
            is_collecting: false,
            is_written: false,
            since: 0,
        };
        let reject = Backend { name: 0, is_serving: false, drains_since: None, is_gone: true };
        Self {
            without,
            now: 1000,
            on_dead: OnDead::Next,
            owners: vec![reject],
            slots: vec![slot; SLOTS.into()],
            established: Table::new(),
            half_open: Table::new(),
            seen: Table::new(),
            syns: BTreeMap::new(),
            pass: pass::Pass::default(),
        }
    }

    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn is_serving(&self, owner: Owner) -> bool {
        self.owners[owner].is_serving
    }

    /// Whether an entry counts.
    fn lives(&self, owner: Owner) -> bool {
        self.is_serving(owner) || (owner != REJECT && !self.has(Rule::OnlyTheServing))
    }

    fn slot(&self, flow: u8) -> Slot {
        self.slots[usize::from(flow % SLOTS)]
    }

    fn to(&self, owner: Owner) -> Outcome {
        if owner == REJECT { Outcome::Reset } else { Outcome::To(self.owners[owner].name) }
    }

    fn opens(&mut self, Packet { flow, sequence, .. }: Packet) -> Outcome {
        let slot = self.slot(flow);
        if !slot.is_settled()
            && let Some(owner) = self.already(flow, slot)
        {
            self.syns.insert(flow, (sequence, owner));
            return self.to(owner);
        }
        let first = self.syns.get(&flow).filter(|first| self.has(Rule::SynAgainFollows) && first.0 == sequence);
        // Once the slot has settled what follows the SYN goes to its owner.
        let first = first.map(|first| first.1).filter(|owner| self.lives(*owner) && !slot.is_settled());
        let owner = first.unwrap_or(slot.current);
        if owner == REJECT {
            return Outcome::Reset;
        }
        self.syns.insert(flow, (sequence, owner));
        if !slot.is_settled() {
            self.announce(flow);
            self.established.remove(&flow);
            self.seen.remove(&flow);
            if self.has(Rule::SynIsNoted) {
                self.half_open.insert(flow, Entry { owner, sequence, is_closing: false, last: self.now });
            }
        }
        self.to(owner)
    }

    /// Where the flow of a SYN is already, and not closing: in ESTABLISHED, or seen where its next
    /// packet would go.
    fn already(&mut self, flow: u8, slot: Slot) -> Option<Owner> {
        let is_open = |entry: Entry| !entry.is_closing || !self.has(Rule::SynReplacesClosing);
        if let Some(entry) = self.established.get(&flow).copied().filter(|entry| self.lives(entry.owner)) {
            if !is_open(entry) || !self.has(Rule::SynFollowsEstablished) {
                return None;
            }
            self.established.insert(flow, self.touched(entry, Kind::Syn));
            return Some(entry.owner);
        }
        let seen = self.seen.get(&flow).copied().filter(|entry| is_open(*entry) && self.lives(entry.owner));
        let entry = seen.filter(|entry| entry.owner == slot.previous || slot.is_settling)?;
        if !self.has(Rule::SynFollowsSeen) {
            return None;
        }
        self.seen.insert(flow, self.touched(entry, Kind::Syn));
        // What is there is of an older flow, whose backend does not serve at the moment.
        self.established.remove(&flow);
        Some(entry.owner)
    }

    fn goes_on(&mut self, packet: Packet) -> Outcome {
        let flow = packet.flow;
        let slot = self.slot(flow);
        if slot.is_settled() {
            return self.to(slot.current);
        }
        if let Some(entry) = self.established.get(&flow).copied().filter(|_| self.has(Rule::EstablishedIsAsked)) {
            if self.lives(entry.owner) {
                self.established.insert(flow, self.touched(entry, packet.kind));
                return self.to(entry.owner);
            }
            if let Some(end) = self.end(entry.owner) {
                return end;
            }
        }
        if let Some(entry) = self.half_open.get(&flow).copied()
            && (packet.sequence.wrapping_sub(entry.sequence).wrapping_sub(1) < CONFIRM_WINDOW
                || !self.has(Rule::ConfirmedBySequence))
        {
            if self.lives(entry.owner) {
                self.announce(flow);
                self.half_open.remove(&flow);
                self.established.insert(flow, self.touched(entry, packet.kind));
                return self.to(entry.owner);
            }
            if let Some(end) = self.end(entry.owner) {
                return end;
            }
        }
        if slot.is_settling
            && self.has(Rule::SettlingAsksSeen)
            && let Some(entry) = self.seen.get(&flow).copied().filter(|entry| self.lives(entry.owner))
        {
            self.seen.insert(flow, self.touched(entry, packet.kind));
            return self.to(entry.owner);
        }
        self.misses(slot, packet)
    }

    /// It was there before the change. Only what lives on `previous` is noted: nobody knows a flow
    /// whose backend is dead.
    fn misses(&mut self, slot: Slot, packet: Packet) -> Outcome {
        if slot.current == slot.previous || !self.has(Rule::MissGoesToPrevious) {
            return self.to(slot.current);
        }
        let owner = slot.previous;
        if !self.is_serving(owner) {
            return self.end(owner).unwrap_or(self.to(slot.current));
        }
        self.announce(packet.flow);
        let before = self.seen.get(&packet.flow).copied().filter(|entry| entry.owner == owner);
        let entry = before.unwrap_or(Entry { owner, sequence: 0, is_closing: false, last: self.now });
        self.seen.insert(packet.flow, self.touched(entry, packet.kind));
        self.to(owner)
    }

    /// What ends the flows of a backend that does not serve, if anything does.
    fn end(&self, owner: Owner) -> Option<Outcome> {
        match self.on_dead {
            _ if owner == REJECT || self.is_serving(owner) => None,
            OnDead::Next => None,
            OnDead::Reset => Some(Outcome::Reset),
            OnDead::Drop => Some(Outcome::Dropped),
        }
    }

    fn touched(&self, mut entry: Entry, kind: Kind) -> Entry {
        match kind {
            Kind::Fin | Kind::Rst => entry.is_closing = true,
            Kind::Data if self.has(Rule::DataRestores) => entry.is_closing = false,
            _ => {}
        }
        if self.has(Rule::PacketsRefresh) {
            entry.last = self.now;
        }
        entry
    }

    /// Before an entry is written.
    fn announce(&mut self, flow: u8) {
        let marks = self.has(Rule::WrittenMark);
        let slot = &mut self.slots[usize::from(flow % SLOTS)];
        slot.is_written |= slot.is_collecting && marks;
    }

    fn change(&mut self, at: usize, owner: Owner) {
        let (stays, tracks) = (self.has(Rule::PreviousStays), self.has(Rule::ReturnIsTracked));
        let now = self.now;
        let slot = &mut self.slots[at];
        if owner == slot.current {
            return;
        }
        // What settled so that it rejects has no flows to keep.
        if slot.is_settled() && slot.current == REJECT {
            (slot.current, slot.previous) = (owner, owner);
            return;
        }
        if slot.current == slot.previous {
            slot.since = now;
        }
        if slot.is_settled() || !stays {
            slot.previous = slot.current;
        } else {
            slot.is_tracked |= owner == slot.previous && tracks;
        }
        slot.current = owner;
    }

    /// The owners' own part of what is wanted: who is there, who serves.
    fn live(&mut self, world: &World) {
        let now = self.now;
        for name in 0..BACKENDS {
            let declared = world.backends[usize::from(name)];
            let alive = self.owners.iter().rposition(|owner| owner.name == name && !owner.is_gone);
            let at = match alive {
                Some(at) => at,
                None if declared.is_declared => {
                    self.owners.push(Backend { name, is_serving: true, drains_since: None, is_gone: false });
                    self.owners.len() - 1
                }
                None => continue,
            };
            let owner = &mut self.owners[at];
            let drains = !declared.is_declared || declared.admin == Admin::Draining;
            owner.drains_since = drains.then(|| owner.drains_since.unwrap_or(now));
            let is_over = owner.drains_since.is_some_and(|since| now >= since + DRAIN_TIMEOUT);
            if declared.is_declared {
                owner.is_serving = world.is_serving(name) && !is_over;
            } else if is_over || !owner.is_serving {
                (owner.is_serving, owner.is_gone) = (false, true);
            }
        }
    }

    /// The owner of each slot.
    fn ring(&self, world: &World) -> Vec<Owner> {
        let eligible: Vec<u8> = (0..BACKENDS).filter(|name| world.is_eligible(*name)).collect();
        let score = |at: u64, name: u8| {
            let weight = u64::from(world.backends[usize::from(name)].weight);
            (mix(at * 100 + u64::from(name)) >> 8) * weight
        };
        let first = |at: u64| {
            let name = eligible.iter().copied().max_by_key(|name| score(at, *name))?;
            self.owners.iter().rposition(|owner| owner.name == name && !owner.is_gone)
        };
        (0..u64::from(SLOTS)).map(|at| first(at).unwrap_or(REJECT)).collect()
    }
}

impl System for Rules {
    fn send(&mut self, packet: Packet) -> Outcome {
        if packet.kind == Kind::Syn { self.opens(packet) } else { self.goes_on(packet) }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += seconds;
    }

    fn reconcile(&mut self, world: &World) {
        self.on_dead = world.on_dead;
        self.live(world);
        for (at, owner) in self.ring(world).into_iter().enumerate() {
            self.change(at, owner);
        }
        // Flows of one that is gone are ended by its slots, if by anybody.
        if self.on_dead != OnDead::Next {
            return;
        }
        for at in 0..self.slots.len() {
            let Slot { current, previous, .. } = self.slots[at];
            if current != previous && self.owners[previous].is_gone && previous != REJECT {
                self.slots[at].previous = current;
                self.slots[at].is_tracked = self.has(Rule::GoneIsTracked) || self.slots[at].is_tracked;
            }
        }
    }

    fn step(&mut self) -> bool {
        pass::step(self)
    }

    fn restart(&mut self, world: &World) {
        self.pass = pass::Pass::default();
        self.reconcile(world);
    }

    fn explain(&mut self, flow: u8) -> String {
        format!(
            "{:?}; ESTABLISHED {:?}; HALF_OPEN {:?}; SEEN {:?}; its SYN {:?}; backends {:?}",
            self.slot(flow),
            self.established.get(&flow),
            self.half_open.get(&flow),
            self.seen.get(&flow),
            self.syns.get(&flow),
            self.owners.iter().enumerate().skip(1).map(|(at, owner)| (at, owner.name)).collect::<Vec<_>>(),
        )
    }
}
