//! The flows of mode `nat`: finding them, following their state. Opening one is in
//! [`crate::ports`].

use lb_common::{
    backend::Backend,
    flow::Addr,
    nat::{
        NAT_ANSWERED, NAT_CLIENT_FIRST, NAT_ESTABLISHED, NAT_FIN_BACKEND, NAT_FIN_CLIENT, NAT_FORWARD, NAT_RESET,
        NatEntry, is_closing, is_finished,
    },
    service::Service,
    settings::Settings,
    verdict::{EVENT_ESTABLISHED_FULL, Reason},
};

use crate::{
    atomic,
    family::Family,
    maps::{self, FlowTable},
    packet::Frame,
    parse::{self, ACK, FIN, RST, SYN},
    select,
    work::{Direction, Via, Work},
};

/// What every step needs to know.
#[derive(Clone, Copy)]
pub struct Now {
    pub settings: &'static Settings,
    pub ifindex: u32,
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
}

/// `last_seen_ns` is written once in this time, not for each packet.
const TOUCH_NS: u64 = 1_000_000_000;
/// How far the acknowledgement that ends a handshake may be ahead of the expected one: data of a
/// backend that speaks first. A guess hits it once in 65,536 times.
const HANDSHAKE_WINDOW: u32 = 1 << 16;

/// A packet of a client to a VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromClient {
    /// It belongs to a flow; `Work` says where it goes.
    Known,
    /// A SYN that wants a flow.
    Opens,
    /// The same, and the client has used this port before: `Work::{to, backend}` and
    /// `entry.generation` say for what.
    OpensAgain,
}

/// Finds the flow of a client's packet.
#[inline(always)]
pub fn from_client<V: Family, F: Frame>(
    now: &Now,
    frame: &F,
    service: &Service,
    work: &mut Work<V::Addr>,
) -> Result<FromClient, Reason> {
    if let Some(entry) = V::nat_established().find(&work.from)
        // SAFETY: RCU keeps the value until this program returns.
        && is_alive::<V>(now, unsafe { &*entry }, work)
    {
        // SAFETY: as above.
        let seen = unsafe { &*entry };
        let serving = select::is_serving(seen.backend, seen.generation);
        if work.tcp.opens() && serving.is_none() {
            work.back = seen.peer();
            forget_pair::<V>(V::nat_established(), work);
            return Ok(FromClient::Opens);
        }
        if work.tcp.opens() && is_closing(seen.flags) {
            return Ok(opens_again(seen, work));
        }
        follow_route(seen, serving.ok_or(Reason::BackendGone)?, work);
        follow::<V, F>(now, frame, V::nat_established(), entry, work);
        retire_if_finished::<V>(now, entry, work);
        return Ok(FromClient::Known);
    }
    if let Some(entry) = V::nat_half_open().find(&work.from) {
        // SAFETY: as above; of an LRU entry that is evicted just now another flow may use the
        // memory: its packets are then taken for lost by TCP.
        if is_fresh(now, unsafe { &*entry }) {
            return half_open::<V, F>(now, frame, service, entry, work);
        }
    }
    if work.tcp.opens() { Ok(FromClient::Opens) } else { Err(Reason::UnknownFlow) }
}

#[inline(always)]
fn half_open<V: Family, F: Frame>(
    now: &Now,
    frame: &F,
    service: &Service,
    entry: *mut NatEntry<V::Addr>,
    work: &mut Work<V::Addr>,
) -> Result<FromClient, Reason> {
    // SAFETY: as in `from_client`.
    let seen = unsafe { &mut *entry };
    let serving = select::is_serving(seen.backend, seen.generation);
    if work.tcp.opens() && is_finished(seen.flags) && serving.is_some() {
        return Ok(opens_again(seen, work));
    }
    if work.tcp.opens() {
        // Nobody has answered, and the slot has a new owner: no use in asking the old one again.
        let moved = seen.flags & NAT_ANSWERED == 0
            && select::owner(now.settings, service, work).is_none_or(|owner| owner.index != seen.backend);
        work.back = seen.peer();
        if moved || serving.is_none() || !is_way_back::<V>(work) {
            forget_half_open::<V>(work);
            return Ok(FromClient::Opens);
        }
        seen.sequence = work.tcp.sequence;
    }
    follow_route(seen, serving.ok_or(Reason::BackendGone)?, work);
    follow::<V, F>(now, frame, V::nat_half_open(), entry, work);
    if !work.tcp.opens() && work.tcp.has(ACK) && seen.flags & (NAT_ANSWERED | NAT_ESTABLISHED) == NAT_ANSWERED {
        confirm::<V>(now, entry, work);
    }
    Ok(FromClient::Known)
}

/// A SYN of a client that has used its port before, for a flow that is over.
#[inline(always)]
fn opens_again<A: Addr>(seen: &NatEntry<A>, work: &mut Work<A>) -> FromClient {
    work.to = seen.to.read();
    work.backend = seen.backend;
    work.entry.generation = seen.generation;
    FromClient::OpensAgain
}

/// Whether the half-open entry `work.back` is that of `work.from`: an LRU may have evicted it
/// alone, and another flow have claimed its tuple.
#[inline(always)]
fn is_way_back<V: Family>(work: &Work<V::Addr>) -> bool {
    // SAFETY: as in `from_client`.
    V::nat_half_open().find(&work.back).is_some_and(|peer| unsafe { &*peer }.peer() == work.from)
}

/// Removes the half-open entry `work.from`, and the way back `work.back` if it is that flow's.
#[inline(always)]
fn forget_half_open<V: Family>(work: &Work<V::Addr>) {
    if is_way_back::<V>(work) {
        V::nat_half_open().forget(&work.back);
    }
    V::nat_half_open().forget(&work.from);
}

/// Moves both entries to ESTABLISHED if this packet ends the handshake.
#[inline(never)]
fn confirm<V: Family>(now: &Now, entry: *mut NatEntry<V::Addr>, work: &mut Work<V::Addr>) {
    // SAFETY: as in `from_client`.
    let seen = unsafe { &*entry };
    work.back = seen.peer();
    let Some(peer) = V::nat_half_open().find(&work.back) else { return };
    // SAFETY: as in `from_client`.
    work.entry = unsafe { &*peer }.read();
    let ahead = work.tcp.acknowledgement.wrapping_sub(work.entry.sequence);
    if work.entry.peer() != work.from || ahead >= HANDSHAKE_WINDOW {
        return;
    }
    work.entry.flags |= NAT_ESTABLISHED;
    work.entry.sequence = 0;
    work.entry.last_seen_ns = now.time_ns;
    if !V::nat_established().claim(&work.back, &work.entry) {
        maps::count_event(now.ifindex, EVENT_ESTABLISHED_FULL);
        return;
    }
    work.entry = seen.read();
    work.entry.flags |= NAT_ESTABLISHED;
    work.entry.last_seen_ns = now.time_ns;
    if !V::nat_established().put(&work.from, &work.entry) {
        V::nat_established().forget(&work.back);
        maps::count_event(now.ifindex, EVENT_ESTABLISHED_FULL);
        return;
    }
    maps::count_stats(work.stats, work.backend, |stats| stats.connections = stats.connections.wrapping_add(1));
    forget_pair::<V>(V::nat_half_open(), work);
}

/// A flow that both ends have finished leaves ESTABLISHED, so that its room is for those that live:
/// what is over is kept where a newer flow may take its place.
#[inline(always)]
fn retire_if_finished<V: Family>(now: &Now, entry: *mut NatEntry<V::Addr>, work: &mut Work<V::Addr>) {
    // SAFETY: as in `from_client`; read anew, for `mark` has changed it.
    let flags = unsafe { (&raw const (*entry).flags).read_volatile() };
    if work.tcp.has(FIN) && is_finished(flags) {
        retire::<V>(now, entry, work);
    }
}

#[inline(never)]
fn retire<V: Family>(now: &Now, entry: *mut NatEntry<V::Addr>, work: &mut Work<V::Addr>) {
    // SAFETY: as in `from_client`.
    work.entry = unsafe { &*entry }.read();
    work.entry.last_seen_ns = now.time_ns;
    work.back = work.entry.peer();
    // First in, then out: another CPU finds the flow in one table or the other.
    if !V::nat_half_open().put(&work.from, &work.entry) {
        return;
    }
    if let Some(peer) = V::nat_established().find(&work.back) {
        // SAFETY: as in `from_client`.
        work.entry = unsafe { &*peer }.read();
        work.entry.last_seen_ns = now.time_ns;
        // What is lost here for want of room is a straggler's way.
        let _is_in = V::nat_half_open().put(&work.back, &work.entry);
    }
    forget_pair::<V>(V::nat_established(), work);
}

/// Finds the flow of a packet that may be a backend's answer; false: not one of ours.
#[inline(always)]
pub fn from_backend<V: Family, F: Frame>(now: &Now, frame: &F, work: &mut Work<V::Addr>) -> Result<bool, Reason> {
    if let Some(entry) = V::nat_established().find(&work.from)
        // SAFETY: as in `from_client`.
        && is_alive::<V>(now, unsafe { &*entry }, work)
    {
        // SAFETY: as above.
        let seen = unsafe { &*entry };
        if seen.flags & NAT_FORWARD != 0 {
            return Ok(false);
        }
        let backend = select::is_serving(seen.backend, seen.generation).ok_or(Reason::BackendGone)?;
        follow_route(seen, backend, work);
        follow::<V, F>(now, frame, V::nat_established(), entry, work);
        retire_if_finished::<V>(now, entry, work);
        return Ok(true);
    }
    let Some(entry) = V::nat_half_open().find(&work.from) else { return Ok(false) };
    // SAFETY: as in `from_client`.
    let seen = unsafe { &mut *entry };
    if seen.flags & NAT_FORWARD != 0 || !is_fresh(now, seen) {
        return Ok(false);
    }
    let backend = select::is_serving(seen.backend, seen.generation).ok_or(Reason::BackendGone)?;
    follow_route(seen, backend, work);
    follow::<V, F>(now, frame, V::nat_half_open(), entry, work);
    if seen.flags & NAT_ESTABLISHED != 0 {
        // A straggler of a finished flow.
    } else if work.tcp.has(RST) {
        // Refused: the port is free at once, for a reset leaves no TIME_WAIT.
        work.back = seen.peer();
        forget_pair::<V>(V::nat_half_open(), work);
    } else if work.tcp.has(SYN) && work.tcp.has(ACK) {
        seen.sequence = work.tcp.sequence.wrapping_add(1);
        mark::<V>(V::nat_half_open(), entry, NAT_ANSWERED, work);
    }
    Ok(true)
}

/// Sends the packet where an entry of either direction says.
#[inline(always)]
fn follow_route<A: Addr>(entry: &NatEntry<A>, backend: &Backend, work: &mut Work<A>) {
    let to_backend = entry.flags & NAT_FORWARD != 0;
    work.to = entry.to.read();
    work.stats = entry.stats;
    work.direction = if to_backend { Direction::ToBackend } else { Direction::ToClient };
    send(entry.backend, to_backend && backend.flags & Backend::FLAG_LOCAL != 0, work);
}

/// Sends the packet to `work.to`, on behalf of a backend.
#[inline(always)]
pub fn send<A: Addr>(backend: u32, is_local: bool, work: &mut Work<A>) {
    work.next = work.to.dst.read();
    work.backend = backend;
    work.via = if is_local { Via::Local } else { Via::Nat };
    work.quoted = 0;
}

/// Notes in an entry that the packet passed.
#[inline(always)]
fn follow<V: Family, F: Frame>(
    now: &Now,
    frame: &F,
    table: &impl FlowTable<V::Addr, NatEntry<V::Addr>>,
    entry: *mut NatEntry<V::Addr>,
    work: &mut Work<V::Addr>,
) {
    // SAFETY: as in `from_client`; a word that two CPUs write holds either's time.
    let seen = unsafe { &mut *entry };
    if now.time_ns.wrapping_sub(seen.last_seen_ns) > TOUCH_NS {
        seen.last_seen_ns = now.time_ns;
    }
    if work.tcp.has(RST) {
        mark::<V>(table, entry, NAT_RESET, work);
    } else if work.tcp.has(FIN) {
        match work.direction {
            Direction::ToClient => mark::<V>(table, entry, NAT_FIN_BACKEND, work),
            Direction::ToBackend => {
                let first = if seen.flags & NAT_FIN_BACKEND == 0 { NAT_CLIENT_FIRST } else { 0 };
                mark::<V>(table, entry, NAT_FIN_CLIENT | first, work);
                // What a new SYN must exceed stands where a search for a free port looks: in the
                // entry of the way back.
                work.back = seen.peer();
                if let Some(peer) = table.find(&work.back) {
                    // SAFETY: as in `from_client`.
                    let peer = unsafe { &mut *peer };
                    peer.sequence = work.tcp.sequence_end();
                    peer.timestamp = parse::tcp_timestamp(frame, &work.tcp);
                }
            }
        }
    } else if seen.flags & NAT_RESET != 0 {
        unmark::<V>(table, entry, NAT_RESET, work);
    }
}

/// Sets `bits` in an entry and in that of the other direction.
#[inline(always)]
fn mark<V: Family>(
    table: &impl FlowTable<V::Addr, NatEntry<V::Addr>>,
    entry: *mut NatEntry<V::Addr>,
    bits: u32,
    work: &mut Work<V::Addr>,
) {
    // SAFETY: as in `from_client`.
    unsafe {
        if (*entry).flags & bits == bits {
            return;
        }
        atomic::or(&raw mut (*entry).flags, bits);
        work.back = (*entry).peer();
        if let Some(peer) = table.find(&work.back) {
            atomic::or(&raw mut (*peer).flags, bits);
        }
    }
}

/// Clears `bits` in an entry and in that of the other direction.
#[inline(always)]
fn unmark<V: Family>(
    table: &impl FlowTable<V::Addr, NatEntry<V::Addr>>,
    entry: *mut NatEntry<V::Addr>,
    bits: u32,
    work: &mut Work<V::Addr>,
) {
    // SAFETY: as in `from_client`.
    unsafe {
        atomic::and(&raw mut (*entry).flags, !bits);
        work.back = (*entry).peer();
        if let Some(peer) = table.find(&work.back) {
            atomic::and(&raw mut (*peer).flags, !bits);
        }
    }
}

/// Whether an established entry has been idle for less than its state allows, in one direction at
/// least. Uses `work.entry.to`.
#[inline(always)]
pub fn is_alive<V: Family>(now: &Now, seen: &NatEntry<V::Addr>, work: &mut Work<V::Addr>) -> bool {
    let allowed = now.settings.nat_timeouts.of(seen.flags);
    if now.time_ns.wrapping_sub(seen.last_seen_ns) <= allowed {
        return true;
    }
    work.entry.to = seen.peer();
    let Some(peer) = V::nat_established().find(&work.entry.to) else { return false };
    // SAFETY: as in `from_client`.
    now.time_ns.wrapping_sub(unsafe { (*peer).last_seen_ns }) <= allowed
}

/// Whether an entry of the half-open table still counts.
#[inline(always)]
pub fn is_fresh<A>(now: &Now, entry: &NatEntry<A>) -> bool {
    now.time_ns.wrapping_sub(entry.last_seen_ns) <= now.settings.nat_timeouts.of(entry.flags)
}

/// Removes the entries of both directions: `work.from` and `work.back`.
#[inline(always)]
pub fn forget_pair<V: Family>(table: &impl FlowTable<V::Addr, NatEntry<V::Addr>>, work: &Work<V::Addr>) {
    table.forget(&work.from);
    table.forget(&work.back);
}
