//! What happens in a run.

use proptest::{collection, prelude::*};

use super::{BACKENDS, FLOWS, Health};

/// A number below `FLOWS` names a flow, one below `BACKENDS` a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A client opens a connection, perhaps on a tuple whose connection is over.
    Open(u8),
    /// A client opens a connection on the tuple of one that it has forgotten and that the backend
    /// has not.
    Reopen(u8),
    /// The client's SYN comes again: it got no answer, or the network made two of one.
    Again(u8),
    Data(u8),
    /// All that are established send data.
    Everyone,
    /// Both ends close; the client first, so that a bare acknowledgement is the last of it, or
    /// second, so that its FIN is.
    Close(u8, bool),
    /// The client has nothing more to say, and goes on listening.
    Shut(u8),
    /// Somebody else sends a SYN from an established flow's address.
    Spoof(u8),
    /// The same once more, sequence number and all.
    SpoofAgain(u8),
    /// Somebody else sends a reset with a sequence number that the backend ignores.
    SpoofReset(u8),
    /// A packet from long ago, or from a stranger, on a tuple without a connection.
    Stray(u8),

    Declare(u8),
    Remove(u8),
    Weigh(u8, u8),
    Drain(u8),
    Disable(u8),
    Activate(u8),
    Judge(u8, Health),
    /// A backend is down for a moment, in which a client opens a connection.
    Blink(u8, u8),

    /// Seconds pass.
    Wait(u8),
    /// The agent settles and collects, from where it is to the end.
    Pass,
    /// One step of that.
    Step,
    Restart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDead {
    Next,
    Reset,
    Drop,
}

/// A whole run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub on_dead: OnDead,
    pub events: Vec<Event>,
}

/// Runs of up to `events` events. In some the agent is in the midst of a pass nearly all the time.
pub fn plan(events: usize) -> impl Strategy<Value = Plan> {
    let on_dead = prop_oneof![Just(OnDead::Next), Just(OnDead::Reset), Just(OnDead::Drop)];
    let events = prop_oneof![
        2 => collection::vec(event(8, 8), 1..=events),
        1 => collection::vec(event(50, 1), 1..=events),
    ];
    (on_dead, events).prop_map(|(on_dead, events)| Plan { on_dead, events })
}

fn event(steps: u32, passes: u32) -> impl Strategy<Value = Event> {
    let flow = || 0..FLOWS;
    let backend = || 0..BACKENDS;
    let health = prop_oneof![3 => Just(Health::Up), 2 => Just(Health::Down), 1 => Just(Health::Dead)];
    prop_oneof![
        steps => Just(Event::Step),
        passes => Just(Event::Pass),
        10 => (1..40_u8).prop_map(Event::Wait),
        16 => flow().prop_map(Event::Data),
        10 => flow().prop_map(Event::Open),
        2 => flow().prop_map(Event::Reopen),
        5 => flow().prop_map(Event::Again),
        5 => Just(Event::Everyone),
        3 => (flow(), any::<bool>()).prop_map(|(flow, first)| Event::Close(flow, first)),
        2 => flow().prop_map(Event::Shut),
        3 => flow().prop_map(Event::Spoof),
        2 => flow().prop_map(Event::SpoofAgain),
        2 => flow().prop_map(Event::SpoofReset),
        3 => flow().prop_map(Event::Stray),
        6 => backend().prop_map(Event::Declare),
        4 => backend().prop_map(Event::Remove),
        5 => (backend(), 0..4_u8).prop_map(|(backend, weight)| Event::Weigh(backend, weight)),
        4 => backend().prop_map(Event::Drain),
        1 => backend().prop_map(Event::Disable),
        4 => backend().prop_map(Event::Activate),
        7 => (backend(), health).prop_map(|(backend, health)| Event::Judge(backend, health)),
        5 => (backend(), flow()).prop_map(|(backend, flow)| Event::Blink(backend, flow)),
        1 => Just(Event::Restart),
    ]
}
