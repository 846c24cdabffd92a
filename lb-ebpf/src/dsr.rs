//! DSR: from a flow to its backend, by the ring and its exceptions (docs/architecture.md, "The
//! rules of the ring").

use lb_common::{
    backend::{Backend, WAY_DSR_L2, WAY_IPIP_V4, WAY_IPIP_V6},
    exception::{EXCEPTION_CLOSING, EXCEPTION_OPENED, Exception},
    service::Service,
    settings::Settings,
    slot::{REJECT, Slot},
    syn::Syn,
    trace::rule,
    verdict::{EVENT_EXCEPTIONS_FULL, EVENT_HALF_OPEN_FULL, EVENT_SEEN_FULL, EVENT_SYN_AGAIN, Reason},
};

use crate::{
    atomic, clock,
    family::Family,
    maps::{self, FlowTable},
    parse::{FIN, RST, Tcp},
    select,
    work::{Direction, Via, Work},
};

/// `last_seen_ns` is written once in this time, not for each packet.
const TOUCH_NS: u64 = 1_000_000_000;

/// Chooses the backend of the packet in `work`, which serves. With `work.quoted` it is an ICMP
/// error that quotes the flow: nothing is noted then.
#[inline(always)]
pub fn choose<V: Family>(
    settings: &Settings,
    service: &Service,
    at_tc: bool,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Result<&'static Backend, Reason> {
    let slot = select::slot(settings, service, work).ok_or(Reason::NoBackend)?;
    if slot.is_settled() {
        work.backend = slot.current();
        if work.tcp.opens() && work.quoted == 0 && work.backend != REJECT {
            // Whoever had the slot before has no entry of this flow: what follows the SYN goes to
            // the owner, so it does as well.
            follow_first::<V>(at_tc, ifindex, work, |owner, work| owner == work.backend);
        }
    } else if let Some(reason) = unsettled::<V>(settings, service.id, at_tc, ifindex, work) {
        return Err(reason);
    }
    if work.backend == REJECT {
        return Err(Reason::NoBackend);
    }
    let backend = maps::backend(work.backend).ok_or(Reason::NoBackend)?;
    if !backend.is_serving() {
        return Err(Reason::NoBackend);
    }
    work.via = match backend.way {
        _ if backend.flags & Backend::FLAG_LOCAL != 0 => Via::LocalDsr,
        WAY_DSR_L2 => Via::DsrL2,
        WAY_IPIP_V4 | WAY_IPIP_V6 => Via::Ipip,
        _ => return Err(Reason::NoBackend),
    };
    work.direction = Direction::ToBackend;
    Ok(backend)
}

/// A SYN that is sent again goes where its first went, if that owner `may` be followed; leaves its
/// fingerprint. At TC that was left by XDP, which saw the same packet.
#[inline(always)]
fn follow_first<V: Family>(
    at_tc: bool,
    ifindex: u32,
    work: &mut Work<V::Addr>,
    may: impl Fn(u32, &Work<V::Addr>) -> bool,
) {
    let Some(first) = first_syn(work).filter(|first| may(first.owner(), work)) else {
        leave_fingerprint(work);
        return;
    };
    work.backend = first.owner();
    if at_tc {
        if first.repeats() > 0 {
            work.rule = rule::SYN_AGAIN;
        }
        return;
    }
    work.rule = rule::SYN_AGAIN;
    maps::count_event(ifindex, EVENT_SYN_AGAIN);
    maps::set_syn(Syn::place(work.hash), first.again());
}

/// What the SYN in `work` left when it was first sent; `None` if it was not, or another one took
/// its place since.
#[inline(always)]
fn first_syn<A>(work: &Work<A>) -> Option<Syn> {
    let first = maps::syn(Syn::place(work.hash));
    first.is(Syn::fingerprint(work.hash, work.tcp.sequence)).then_some(first)
}

/// Notes that the SYN in `work` goes to its backend.
#[inline(always)]
fn leave_fingerprint<A>(work: &Work<A>) {
    let fingerprint = Syn::fingerprint(work.hash, work.tcp.sequence);
    maps::set_syn(Syn::place(work.hash), Syn::new(fingerprint, work.backend));
}

/// Whether the backend at `index` serves this service: a fingerprint may be older than the use of
/// its index.
#[inline(always)]
fn is_owner_of(index: u32, service: u32) -> bool {
    index != REJECT && maps::backend(index).is_some_and(|backend| backend.is_serving() && backend.service == service)
}

/// Chooses in a slot whose owners differ or which has exceptions. What is returned ends the packet
/// here.
#[inline(never)]
fn unsettled<V: Family>(
    settings: &Settings,
    service: u32,
    at_tc: bool,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Option<Reason> {
    let now_ns = clock::coarse_ns();
    if work.tcp.opens() && work.quoted == 0 {
        opens::<V>(settings, service, at_tc, ifindex, now_ns, work);
        return None;
    }
    goes_on::<V>(settings, ifindex, now_ns, work)
}

/// A SYN: where its flow is already, else where its first went, else to `current`. A flow that is
/// there, and not closing, keeps its owner and is not replaced: a tuple that is used again meets
/// its old owner, and a SYN that somebody else sends harms nobody.
#[inline(always)]
fn opens<V: Family>(
    settings: &Settings,
    service: u32,
    at_tc: bool,
    ifindex: u32,
    now_ns: u64,
    work: &mut Work<V::Addr>,
) {
    let slot = Slot(work.word);
    let established = look::<V, _>(Slot::IN_ESTABLISHED, V::established(), work);
    let is_established = established.map_or(Already::No, |entry| is_established::<V>(entry, now_ns, work));
    if is_established == Already::Yes {
        leave_fingerprint(work);
        return;
    }
    let seen = look::<V, _>(Slot::IN_SEEN, V::seen(), work);
    if is_established == Already::No && seen.is_some_and(|entry| is_seen::<V>(entry, now_ns, work)) {
        // An older flow's, whose backend does not serve at the moment.
        if established.is_some() {
            V::established().forget(&work.from);
        }
        leave_fingerprint(work);
        return;
    }
    work.backend = slot.current();
    work.rule = rule::CURRENT;
    if work.backend == REJECT && !first_syn(work).is_some_and(|first| is_owner_of(first.owner(), service)) {
        return;
    }
    follow_first::<V>(at_tc, ifindex, work, |owner, _| is_owner_of(owner, service));
    if !note_opening::<V>(settings, now_ns, work) {
        // Whoever can't remember it must be sent where it will be looked for.
        work.rule = rule::NO_ROOM;
        if is_owner_of(slot.previous(), service) {
            work.backend = slot.previous();
        }
        leave_fingerprint(work);
        maps::count_event(ifindex, EVENT_HALF_OPEN_FULL);
    }
    // SEEN first: the agent, which makes its entries established just now, looks whether they are
    // still there.
    if seen.is_some() {
        V::seen().forget(&work.from);
    }
    if seen.is_some() || established.is_some() {
        V::established().forget(&work.from);
    }
}

/// Whether the flow of a SYN is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Already {
    Yes,
    /// It ends: the SYN is of the next one with its tuple.
    Closing,
    No,
}

/// Whether the flow of a SYN has this entry in ESTABLISHED; its owner is in `work` then.
#[inline(always)]
fn is_established<V: Family>(entry: *mut Exception, now_ns: u64, work: &mut Work<V::Addr>) -> Already {
    // SAFETY: RCU keeps the value until this program returns; words that two CPUs write hold
    // either's value.
    let there = unsafe { &mut *entry };
    if select::is_serving(there.backend, there.generation).is_none() {
        return Already::No;
    }
    if there.flags & EXCEPTION_CLOSING != 0 {
        return Already::Closing;
    }
    touch(there, now_ns, &work.tcp);
    work.backend = there.backend;
    work.rule = rule::ESTABLISHED;
    Already::Yes
}

/// Whether the flow of a SYN was seen where its next packet would go, by this entry of SEEN.
#[inline(always)]
fn is_seen<V: Family>(entry: *mut Exception, now_ns: u64, work: &mut Work<V::Addr>) -> bool {
    let slot = Slot(work.word);
    // SAFETY: as in `note_opening`.
    let there = unsafe { &mut *entry };
    let is_asked = there.backend == slot.previous() || slot.has(Slot::SETTLING);
    if !is_asked
        || there.flags & EXCEPTION_CLOSING != 0
        || select::is_serving(there.backend, there.generation).is_none()
    {
        return false;
    }
    touch(there, now_ns, &work.tcp);
    work.backend = there.backend;
    work.rule = rule::SEEN;
    true
}

/// Leaves the SYN's half-open entry; false if that could not be written.
#[inline(always)]
fn note_opening<V: Family>(settings: &Settings, now_ns: u64, work: &mut Work<V::Addr>) -> bool {
    let Some(backend) = maps::backend(work.backend) else { return false };
    let generation = backend.generation;
    announce(Slot::IN_HALF_OPEN, work);
    if let Some(entry) = look::<V, _>(Slot::IN_HALF_OPEN, V::half_open(), work) {
        // SAFETY: as in `is_established`; of an entry that is evicted just now another flow may use
        // the memory: then this SYN is not remembered, and its flow is lost as if the entry had
        // been evicted a moment later.
        let seen = unsafe { &mut *entry };
        // The same tuple once more: its entry is written in place, which costs half of another. Not
        // one that the agent may find idle, and so take away at this moment. By compare-and-swap:
        // the memory of an entry that is evicted just now may be another flow's, whose sequence
        // number is another.
        let is_fresh = now_ns.wrapping_sub(seen.last_seen_ns) < settings.nat_timeouts.half_open_ns / 2;
        let (is_same, before) =
            ((seen.backend, seen.generation, seen.slot) == (work.backend, generation, work.slot), seen.sequence);
        // SAFETY: an aligned word of a map value.
        if is_fresh && is_same && unsafe { atomic::replace(&raw mut seen.sequence, before, work.tcp.sequence) } {
            seen.flags = EXCEPTION_OPENED;
            seen.last_seen_ns = now_ns;
            return true;
        }
    }
    work.exception = Exception {
        backend: work.backend,
        generation,
        slot: work.slot,
        sequence: work.tcp.sequence,
        flags: EXCEPTION_OPENED,
        reserved: 0,
        last_seen_ns: now_ns,
    };
    V::half_open().put(&work.from, &work.exception)
}

/// A packet of a flow that has begun before: where its entry says; without one it was there before
/// the slot changed.
#[inline(always)]
fn goes_on<V: Family>(settings: &Settings, ifindex: u32, now_ns: u64, work: &mut Work<V::Addr>) -> Option<Reason> {
    let slot = Slot(work.word);
    if let Some(entry) = look::<V, _>(Slot::IN_ESTABLISHED, V::established(), work) {
        // SAFETY: as in `is_established`.
        let seen = unsafe { &mut *entry };
        match state(seen.backend, seen.generation) {
            State::Living => {
                if work.quoted == 0 {
                    touch(seen, now_ns, &work.tcp);
                }
                work.backend = seen.backend;
                work.rule = rule::ESTABLISHED;
                return None;
            }
            State::Ends(reason) => return Some(reason),
            State::Absent => {}
        }
    }
    if let Some(entry) = look::<V, _>(Slot::IN_HALF_OPEN, V::half_open(), work) {
        // SAFETY: as in `note_opening`. What is judged and kept is a copy, whoever uses the memory
        // by then.
        work.exception = unsafe { *entry };
        let seen = &mut work.exception;
        if (seen.is_confirmed_by(work.tcp.sequence) || work.quoted != 0) && seen.slot == work.slot {
            match state(seen.backend, seen.generation) {
                State::Living => {
                    work.backend = seen.backend;
                    work.rule = rule::HALF_OPEN;
                    if work.quoted == 0 {
                        touch(seen, now_ns, &work.tcp);
                        // SAFETY: as in `note_opening`.
                        touch(unsafe { &mut *entry }, now_ns, &work.tcp);
                        confirm::<V>(ifindex, work);
                    }
                    return None;
                }
                State::Ends(reason) => return Some(reason),
                State::Absent => {}
            }
        }
    }
    if slot.has(Slot::SETTLING)
        && let Some(entry) = look::<V, _>(Slot::IN_SEEN, V::seen(), work)
    {
        // SAFETY: as in `note_opening`.
        let seen = unsafe { &mut *entry };
        if select::is_serving(seen.backend, seen.generation).is_some() {
            if work.quoted == 0 {
                touch(seen, now_ns, &work.tcp);
            }
            work.backend = seen.backend;
            work.rule = rule::SEEN;
            return None;
        }
    }
    misses::<V>(settings, ifindex, now_ns, work)
}

/// Moves the half-open entry of which `work` has a copy to ESTABLISHED. Where that has no room it
/// stays.
#[inline(always)]
fn confirm<V: Family>(ifindex: u32, work: &Work<V::Addr>) {
    announce(Slot::IN_ESTABLISHED, work);
    if V::established().put(&work.from, &work.exception) {
        V::half_open().forget(&work.from);
    } else {
        maps::count_event(ifindex, EVENT_EXCEPTIONS_FULL);
    }
}

/// In no table: it was there before the change, so it is `previous`'s, if that one lives.
#[inline(always)]
fn misses<V: Family>(settings: &Settings, ifindex: u32, now_ns: u64, work: &mut Work<V::Addr>) -> Option<Reason> {
    let slot = Slot(work.word);
    work.backend = slot.current();
    work.rule = rule::RING;
    if !slot.in_transition() {
        return None;
    }
    // Another build takes over: its program, or ours, may have seen the flow begin.
    let is_handed_over = settings.flags & Settings::FLAG_HANDOVER != 0;
    if work.quoted == 0 && is_handed_over && look::<V, _>(Slot::IN_SEEN, V::seen(), work).is_none() {
        return Some(Reason::Handover);
    }
    let previous = maps::backend(slot.previous())?;
    if !previous.is_serving() {
        // Not noted: nobody knows it there, and should `previous` serve again, its flows go on.
        work.rule = rule::PREVIOUS_GONE;
        return ends(previous);
    }
    work.backend = slot.previous();
    work.rule = rule::PREVIOUS;
    if work.quoted == 0 {
        note_seen::<V>(ifindex, now_ns, work);
    }
    None
}

#[inline(always)]
fn note_seen<V: Family>(ifindex: u32, now_ns: u64, work: &mut Work<V::Addr>) {
    let Some(backend) = maps::backend(work.backend) else { return };
    let generation = backend.generation;
    if let Some(entry) = look::<V, _>(Slot::IN_SEEN, V::seen(), work) {
        // SAFETY: as in `note_opening`.
        let seen = unsafe { &mut *entry };
        if (seen.backend, seen.generation, seen.slot) == (work.backend, generation, work.slot) {
            touch(seen, now_ns, &work.tcp);
            return;
        }
    }
    work.exception = Exception {
        backend: work.backend,
        generation,
        slot: work.slot,
        sequence: 0,
        flags: if work.tcp.has(FIN | RST) { EXCEPTION_CLOSING } else { 0 },
        reserved: 0,
        last_seen_ns: now_ns,
    };
    announce(Slot::IN_SEEN, work);
    if !V::seen().put(&work.from, &work.exception) {
        maps::count_event(ifindex, EVENT_SEEN_FULL);
    }
}

/// The entry of the packet's flow in a table, if the slot says that there may be one: each look-up
/// in vain costs several cache lines.
#[inline(always)]
fn look<V: Family, T: FlowTable<V::Addr, Exception>>(
    flag: u64,
    table: &T,
    work: &Work<V::Addr>,
) -> Option<*mut Exception> {
    if Slot(work.word).may_be(flag) { table.find(&work.from) } else { None }
}

/// Says in the slot that an entry is about to come into a table; while the agent looks whether
/// there are any, that one came since.
#[inline(always)]
fn announce<A>(flag: u64, work: &Work<A>) {
    let slot = Slot(work.word);
    let wanted = if slot.has(Slot::COLLECTING) { flag | Slot::WRITTEN } else { flag };
    if slot.0 & wanted != wanted {
        maps::mark_slot(work.slot, wanted);
    }
}

/// Notes that a packet of the entry passed. FIN and RST shorten its idle time; data restores it.
#[inline(always)]
fn touch(entry: &mut Exception, now_ns: u64, tcp: &Tcp) {
    if now_ns.wrapping_sub(entry.last_seen_ns) > TOUCH_NS {
        entry.last_seen_ns = now_ns;
    }
    if tcp.has(FIN | RST) {
        if entry.flags & EXCEPTION_CLOSING == 0 {
            entry.flags |= EXCEPTION_CLOSING;
        }
    } else if entry.flags & EXCEPTION_CLOSING != 0 && tcp.payload != 0 {
        entry.flags &= !EXCEPTION_CLOSING;
    }
}

/// What an entry's backend does with it.
enum State {
    Living,
    /// Its flows are ended, as `onDead` says.
    Ends(Reason),
    /// Gone, or another one by now, or none that cares: the entry counts as absent.
    Absent,
}

#[inline(always)]
fn state(index: u32, generation: u32) -> State {
    match maps::backend(index) {
        Some(backend) if backend.generation != generation => State::Absent,
        Some(backend) if backend.is_serving() => State::Living,
        Some(backend) => ends(backend).map_or(State::Absent, State::Ends),
        None => State::Absent,
    }
}

/// How flows of a backend that does not serve are ended; `None`: its slots' owners do, who don't
/// know them.
#[inline(always)]
fn ends(backend: &Backend) -> Option<Reason> {
    if backend.flags & Backend::FLAG_RESET != 0 {
        Some(Reason::BackendDead)
    } else if backend.flags & Backend::FLAG_DROP != 0 {
        Some(Reason::BackendDeadDrop)
    } else {
        None
    }
}
