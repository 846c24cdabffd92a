//! Decides what happens to a slot and to an entry, as pure functions.

use lb_common::{
    backend::{self, Backend},
    exception::{EXCEPTION_CLOSING, Exception},
    nat::NatTimeouts,
    slot::Slot,
};

use super::clock;
use crate::dataplane::tables::dsr::ExceptionKind;

/// How far a slot is on its way to settling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotProgress {
    /// Nothing to do, or not yet.
    Waits,
    /// The owners differ, and the clock cannot be trusted: it starts now.
    SetClock,
    /// The owners have differed for long enough.
    Due,
    /// The slot was settling when the last pass ended.
    Settling,
}

/// `previous` is the map entry of the previous owner.
pub fn progress(slot: Slot, clock: u32, previous: Option<&Backend>, settle_ns: u64, now_ns: u64) -> SlotProgress {
    if !slot.in_transition() {
        return if slot.has(Slot::SETTLING) { SlotProgress::Settling } else { SlotProgress::Waits };
    }
    match clock::elapsed_ns(clock, now_ns) {
        None => SlotProgress::SetClock,
        Some(elapsed) if elapsed >= settle_ns && !previous.is_some_and(keeps_its_slots) => SlotProgress::Due,
        Some(_) if slot.has(Slot::SETTLING) => SlotProgress::Settling,
        Some(_) => SlotProgress::Waits,
    }
}

/// A draining backend keeps its slots until it is gone, so that connections silent for longer than
/// the settle time survive the drain. A backend whose flows are being ended keeps its slots until
/// its map entry goes.
const fn keeps_its_slots(previous: &Backend) -> bool {
    match previous.admin {
        backend::ADMIN_DRAINING | backend::ADMIN_REMOVED | backend::ADMIN_GONE => {
            previous.flags & (Backend::FLAG_SERVING | Backend::FLAG_RESET | Backend::FLAG_DROP) != 0
        }
        _ => false,
    }
}

/// Whether the backend that an entry names is gone, was replaced by another one at the same index,
/// or has ended its flows. A dead backend does not count: it may come back.
pub fn is_void(entry: &Exception, backend: Option<&Backend>) -> bool {
    backend.is_none_or(|backend| {
        let ends = Backend::FLAG_SERVING | Backend::FLAG_RESET | Backend::FLAG_DROP;
        let may_go_on = backend.flags & ends != 0 || backend.health == backend::HEALTH_DEAD;
        backend.family == 0 || backend.generation != entry.generation || !may_go_on
    })
}

pub fn is_idle(kind: ExceptionKind, entry: &Exception, now_ns: u64, timeouts: &NatTimeouts) -> bool {
    let granted = match kind {
        _ if entry.flags & EXCEPTION_CLOSING != 0 => timeouts.closing_ns,
        ExceptionKind::HalfOpen => timeouts.half_open_ns,
        ExceptionKind::Established | ExceptionKind::Seen => timeouts.established_ns,
    };
    now_ns.saturating_sub(entry.last_seen_ns) > granted
}

/// An entry that belongs to no VIP of the pass is removed once it has been idle for this long.
const STRAY_NS: u64 = 5_000_000_000;

/// Why an entry can be removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// No program looks it up: its VIP is no longer served, or is served by another ring.
    Stray,
    /// See [`is_void`].
    Void,
    Idle,
    /// The ring gives the same answer, or the program does not look in this table for the slot.
    Agrees,
}

/// What is known of an entry's slot.
#[derive(Clone, Copy, Debug)]
pub struct EntryPlace {
    /// `None`: the entry's VIP has no such slot.
    pub slot: Option<Slot>,
    /// This pass collects the slot.
    pub is_collected: bool,
    /// The VIP may still be wanted, although no service has it: see `SettleScope::holds`.
    pub is_held: bool,
}

/// Why an entry can be removed; `None` if it stays.
pub fn over(
    kind: ExceptionKind,
    entry: &Exception,
    place: EntryPlace,
    backend: Option<&Backend>,
    now_ns: u64,
    timeouts: &NatTimeouts,
) -> Option<Over> {
    if place.slot.is_none() && !place.is_held {
        // The VIP may have been added since the pass began.
        return (now_ns.saturating_sub(entry.last_seen_ns) > STRAY_NS).then_some(Over::Stray);
    }
    if is_void(entry, backend) {
        return Some(Over::Void);
    }
    if is_idle(kind, entry, now_ns, timeouts) {
        return Some(Over::Idle);
    }
    let slot = place.slot?;
    let is_quiet = place.is_collected && !slot.in_transition() && !slot.has(Slot::SETTLING);
    let agrees = match kind {
        ExceptionKind::HalfOpen | ExceptionKind::Established => is_quiet && entry.backend == slot.current(),
        ExceptionKind::Seen => is_quiet,
    };
    (slot.is_settled() || agrees).then_some(Over::Agrees)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 100_000 * SECOND;
    const TIMEOUTS: NatTimeouts =
        NatTimeouts { half_open_ns: 30 * SECOND, established_ns: 7200 * SECOND, closing_ns: 60 * SECOND };

    fn backend(admin: u8, flags: u32) -> Backend {
        Backend { family: 4, generation: 3, admin, flags, ..Backend::FREE }
    }

    fn entry(backend: u32, idle_s: u64, flags: u32) -> Exception {
        let last_seen_ns = NOW - idle_s * SECOND;
        Exception { backend, generation: 3, slot: 9, sequence: 1, flags, reserved: 0, last_seen_ns }
    }

    #[test]
    fn slot_settles_when_its_owners_have_differed_for_long_enough_unless_the_previous_one_drains() {
        use backend::{ADMIN_ACTIVE, ADMIN_DISABLED, ADMIN_DRAINING, ADMIN_GONE, ADMIN_REMOVED};
        let (serving, reset) = (Backend::FLAG_SERVING, Backend::FLAG_RESET);
        let ago = |seconds: u64| clock::deciseconds(NOW - seconds * SECOND);
        let (differ, same) = (Slot::new(2, 1, 0), Slot::new(2, 2, Slot::TRACKED));
        let settle = 10 * SECOND;
        for (slot, clock, admin, flags, expected) in [
            (differ, ago(9), ADMIN_ACTIVE, serving, SlotProgress::Waits),
            (differ, ago(10), ADMIN_ACTIVE, serving, SlotProgress::Due),
            (differ, 0, ADMIN_ACTIVE, serving, SlotProgress::SetClock),
            (differ, ago(0) + 5, ADMIN_ACTIVE, serving, SlotProgress::SetClock),
            (differ, ago(900), ADMIN_DRAINING, serving, SlotProgress::Waits),
            (differ, ago(900), ADMIN_REMOVED, serving, SlotProgress::Waits),
            (differ, ago(900), ADMIN_GONE, reset, SlotProgress::Waits),
            (differ, ago(900), ADMIN_DRAINING, 0, SlotProgress::Due),
            (differ, ago(900), ADMIN_DISABLED, 0, SlotProgress::Due),
            (same, ago(900), ADMIN_ACTIVE, serving, SlotProgress::Waits),
            (same.with(Slot::SETTLING), 0, ADMIN_ACTIVE, serving, SlotProgress::Settling),
            (differ.with(Slot::SETTLING), ago(1), ADMIN_ACTIVE, serving, SlotProgress::Settling),
            (differ.with(Slot::SETTLING), ago(10), ADMIN_ACTIVE, serving, SlotProgress::Due),
        ] {
            let previous = backend(admin, flags);
            assert_eq!(progress(slot, clock, Some(&previous), settle, NOW), expected, "{slot:?} {admin} {flags}");
        }
        assert_eq!(progress(differ, ago(10), None, settle, NOW), SlotProgress::Due);
    }

    #[test]
    fn entry_goes_when_the_ring_agrees_or_nobody_needs_it_and_stays_otherwise() {
        let serving = backend(backend::ADMIN_ACTIVE, Backend::FLAG_SERVING);
        let dead = Backend { health: backend::HEALTH_DEAD, ..backend(backend::ADMIN_ACTIVE, 0) };
        let disabled = backend(backend::ADMIN_DISABLED, 0);
        let gone = backend(backend::ADMIN_GONE, Backend::FLAG_RESET);
        let tracked = Slot::new(2, 2, Slot::TRACKED | Slot::COLLECTING);
        let differs = Slot::new(3, 2, Slot::TRACKED);
        let (half, est, seen) = (ExceptionKind::HalfOpen, ExceptionKind::Established, ExceptionKind::Seen);
        let closing = EXCEPTION_CLOSING;
        for (name, kind, entry, slot, owner, expected) in [
            ("agrees", est, entry(2, 1, 0), tracked, serving, Some(Over::Agrees)),
            ("agrees, half open", half, entry(2, 1, 0), tracked, serving, Some(Over::Agrees)),
            ("differs", est, entry(1, 1, 0), tracked, serving, None),
            ("differs, half open", half, entry(1, 1, 0), tracked, serving, None),
            ("seen while the owners agree", seen, entry(1, 1, 0), tracked, serving, Some(Over::Agrees)),
            ("seen in transition", seen, entry(2, 1, 0), differs, serving, None),
            ("agrees with the next owner", est, entry(3, 1, 0), differs, serving, None),
            ("still settling", est, entry(2, 1, 0), tracked.with(Slot::SETTLING), serving, None),
            ("seen, still settling", seen, entry(1, 1, 0), tracked.with(Slot::SETTLING), serving, None),
            ("left in a settled slot", est, entry(1, 1, 0), Slot::settled(2), serving, Some(Over::Agrees)),
            ("idle", est, entry(1, 7201, 0), tracked, serving, Some(Over::Idle)),
            ("silent for long", est, entry(1, 7199, 0), differs, serving, None),
            ("never confirmed", half, entry(1, 31, 0), differs, serving, Some(Over::Idle)),
            ("closed", est, entry(1, 61, closing), differs, serving, Some(Over::Idle)),
            ("closing", est, entry(1, 59, closing), tracked, serving, None),
            (
                "of another use of the index",
                est,
                entry(1, 1, 0),
                tracked,
                Backend { generation: 4, ..serving },
                Some(Over::Void),
            ),
            ("of a free index", est, entry(1, 1, 0), tracked, Backend { family: 0, ..serving }, Some(Over::Void)),
            ("of a disabled one", est, entry(1, 1, 0), tracked, disabled, Some(Over::Void)),
            ("of a dead one, which may come back", est, entry(1, 1, 0), tracked, dead, None),
            ("of one whose flows are reset", est, entry(1, 1, 0), tracked, gone, None),
        ] {
            let place = EntryPlace { slot: Some(slot), is_collected: true, is_held: false };
            assert_eq!(over(kind, &entry, place, Some(&owner), NOW, &TIMEOUTS), expected, "{name}");
        }
        let place = |slot, is_collected| EntryPlace { slot, is_collected, is_held: false };
        assert_eq!(over(est, &entry(2, 6, 0), place(None, false), Some(&serving), NOW, &TIMEOUTS), Some(Over::Stray));
        assert_eq!(over(est, &entry(2, 5, 0), place(None, false), Some(&serving), NOW, &TIMEOUTS), None);
        // Before the grace period a program may still rely on it.
        assert_eq!(over(est, &entry(2, 1, 0), place(Some(tracked), false), Some(&serving), NOW, &TIMEOUTS), None);
    }
}
