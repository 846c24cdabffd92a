//! The promise of the ring, as a program: a packet of an established flow never reaches another
//! backend while its own is serving, unless the flow was silent for longer than the settle time.
//!
//! [`run`] shows random [`Event`]s to a [`System`] and judges every answer by the [`Truth`], which
//! knows which flow lives on which backend and nothing of slots or tables. One system is [`Rules`],
//! the rules of the ring (docs/architecture.md) in plain Rust, from which any single rule can be
//! left out; the other is the kernel program with the agent's own code (tests/tests/model).

pub mod check;
mod event;
mod rules;
mod truth;

pub use self::{
    event::{Event, OnDead, Plan, plan},
    rules::{Rule, Rules},
    truth::{Stats, Truth, Violation, run},
};

/// Flows of a run; few, so that they meet each other's entries.
pub const FLOWS: u8 = 4;
/// Backends that may be declared.
pub const BACKENDS: u8 = 5;
/// Slots of the ring; flow `n` is of slot `n % SLOTS`.
pub const SLOTS: u8 = 3;

/// Seconds, in the time of the model.
pub const SETTLE_TIME: u64 = 60;
pub const DRAIN_TIMEOUT: u64 = 90;
pub const HALF_OPEN_TIMEOUT: u64 = 50;
pub const CLOSING_TIMEOUT: u64 = 20;
pub const ESTABLISHED_TIMEOUT: u64 = 130;

/// A packet from a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub flow: u8,
    pub kind: Kind,
    pub sequence: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Syn,
    /// A bare acknowledgement.
    Ack,
    Data,
    Fin,
    Rst,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It went to this backend.
    To(u8),
    Reset,
    Dropped,
    /// Something that no rule allows; the system says what.
    Other(&'static str),
}

/// What the agent is told: the backends as declared, and their health.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct World {
    pub on_dead: OnDead,
    pub backends: [Declared; BACKENDS as usize],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declared {
    pub is_declared: bool,
    pub weight: u8,
    pub admin: Admin,
    pub health: Health,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admin {
    Active,
    Draining,
    Disabled,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    Up,
    Down,
    Dead,
}

impl World {
    pub fn new(on_dead: OnDead) -> Self {
        let declared =
            |number| Declared { is_declared: number < 3, weight: 1, admin: Admin::Active, health: Health::Up };
        Self { on_dead, backends: std::array::from_fn(declared) }
    }

    /// Whether a backend gets new flows.
    pub fn is_eligible(&self, backend: u8) -> bool {
        let Declared { is_declared, weight, admin, health } = self.backends[usize::from(backend)];
        is_declared && weight > 0 && admin == Admin::Active && health == Health::Up
    }

    /// Whether flows of a declared backend may go on: not if somebody disabled it, nor if nothing
    /// answers there while at least half of the declared ones that nobody disabled are up.
    pub fn is_serving(&self, backend: u8) -> bool {
        let Declared { admin, health, .. } = self.backends[usize::from(backend)];
        admin != Admin::Disabled && (health != Health::Dead || !self.is_half_up())
    }

    fn is_half_up(&self) -> bool {
        let declared = self.backends.iter().filter(|backend| backend.is_declared && backend.admin != Admin::Disabled);
        let up = declared.clone().filter(|backend| backend.health == Health::Up).count();
        2 * up >= declared.count()
    }
}

/// What is judged: a program with its tables, and the agent beside it. Times are seconds of the
/// model.
pub trait System {
    /// The packet comes.
    fn send(&mut self, packet: Packet) -> Outcome;

    /// Time passes, and nothing else.
    fn wait(&mut self, seconds: u64);

    /// The agent makes the maps what the world wants.
    fn reconcile(&mut self, world: &World);

    /// The agent does the next step of settling and collecting; false if that was the last one of
    /// this pass.
    fn step(&mut self) -> bool;

    /// The agent ends, and another one begins.
    fn restart(&mut self, world: &World);

    /// What it knows of a flow, for a person.
    fn explain(&mut self, flow: u8) -> String;
}

#[cfg(test)]
mod tests;
