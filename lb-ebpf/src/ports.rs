//! Opening a `nat` flow: finding it a port towards its backend, and claiming it.

use lb_common::{
    backend::Backend,
    flow::Addr,
    nat::{NAT_CLIENT_FIRST, NAT_FORWARD, NatEntry, is_closing, is_finished},
    verdict::{EVENT_CLOSED_REUSED, EVENT_HALF_OPEN_STOLEN, Reason},
};

use crate::{
    atomic,
    family::Family,
    maps::{self, FlowTable},
    nat::{self, Now},
    packet::Frame,
    parse::{self, Tcp},
    select::Owner,
    work::{Direction, Work},
};

/// Tuples that are tried before the best of those in use is taken, or the SYN refused.
const PROBES: u32 = 12;
/// A half-open flow is left alone for so long before a newer one may take its port, and so is a
/// finished one whose backend keeps no TIME_WAIT: its last acknowledgement may have to be sent
/// again.
const STEAL_AFTER_NS: u64 = 1_000_000_000;

/// What holds the tuple that a backend would answer to, and since when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A flow that is over, whose TIME_WAIT would let this SYN in.
    Closed,
    /// A flow whose handshake has been under way for long enough that a newer one may take its
    /// port.
    HalfOpen,
    /// Anything else.
    Flow,
}

/// Opens the flow of the SYN in `work` to the owner of its slot. `again`: `work` has the tuple that
/// the client used before.
#[inline(always)]
pub fn open<V: Family, F: Frame>(
    now: &Now,
    frame: &F,
    owner: &Owner,
    again: bool,
    work: &mut Work<V::Addr>,
) -> Result<(), Reason> {
    let backend = owner.backend;
    let is_local = backend.flags & Backend::FLAG_LOCAL != 0;
    work.direction = Direction::ToBackend;
    if again {
        V::nat_established().forget(&work.from);
        V::nat_half_open().forget(&work.from);
        if work.backend == owner.index && work.entry.generation == backend.generation {
            // The client uses its port again, as it would with the backend itself: so does the
            // flow.
            work.back = work.to.reversed();
            V::nat_established().forget(&work.back);
            V::nat_half_open().forget(&work.back);
            if claim::<V>(now, owner, work) {
                nat::send(owner.index, is_local, work);
                return Ok(());
            }
        }
    }
    let keeps_source = backend.flags & (Backend::FLAG_KEEP_SOURCE | Backend::FLAG_LOCAL) != 0;
    let client_port = u16::from_be(work.from.src_port_be);
    work.to.src = work.from.src.read();
    work.to.dst = V::Addr::from_any(&backend.address);
    work.to.dst_port_be = backend.port_be;
    work.tcp.timestamp = parse::tcp_timestamp(frame, &work.tcp);
    let mut spare = Holder::Flow;
    let mut spare_since_ns = 0;
    for probe in 0..PROBES {
        let own = probe == 0 && (keeps_source || now.settings.ports.contains(client_port));
        let position = if own { client_port as u64 } else { next_position(owner.index) };
        work.to.src_port_be = if own { work.from.src_port_be } else { now.settings.ports.walk(position).to_be() };
        if !keeps_source {
            work.to.src = snat_address::<V>(now, backend, position).ok_or(Reason::PortsExhausted)?;
        }
        if work.to.src_port_be == 0 {
            return Err(Reason::PortsExhausted);
        }
        work.back = work.to.reversed();
        let holder = holder::<V>(now, work);
        if holder == Holder::Nobody {
            if claim::<V>(now, owner, work) {
                nat::send(owner.index, is_local, work);
                return Ok(());
            }
            continue;
        }
        let since_ns = work.entry.last_seen_ns;
        let better = match holder {
            Holder::Closed => spare != Holder::Closed || since_ns < spare_since_ns,
            Holder::HalfOpen => spare == Holder::Flow || (spare == Holder::HalfOpen && since_ns < spare_since_ns),
            Holder::Nobody | Holder::Flow => false,
        };
        if better {
            work.spare = work.to.read();
            (spare, spare_since_ns) = (holder, since_ns);
        }
    }
    if spare == Holder::Flow {
        return Err(Reason::PortsExhausted);
    }
    work.to = work.spare.read();
    work.back = work.to.reversed();
    evict::<V>(work);
    if !claim::<V>(now, owner, work) {
        return Err(Reason::FlowTable);
    }
    let event = if spare == Holder::Closed { EVENT_CLOSED_REUSED } else { EVENT_HALF_OPEN_STOLEN };
    maps::count_event(now.ifindex, event);
    nat::send(owner.index, is_local, work);
    Ok(())
}

/// How far the walk of this backend's pool has come; it goes on with every call.
#[inline(always)]
fn next_position(backend: u32) -> u64 {
    match maps::SNAT_CURSORS.get_ptr_mut(backend) {
        // SAFETY: a live value of an array.
        Some(cursor) => unsafe { atomic::count_up(cursor) },
        None => 0,
    }
}

/// The SNAT address of a position of the walk: all ports of one address, then those of the next.
#[inline(always)]
fn snat_address<V: Family>(now: &Now, backend: &Backend, position: u64) -> Option<V::Addr> {
    let ports = now.settings.ports.size as u64;
    let count = backend.snat_count as u64;
    if count == 0 || ports == 0 {
        return None;
    }
    let index = (position.checked_div(ports)?).checked_rem(count)?;
    let words = maps::SNAT_ADDRESSES.get((backend.snat_first as u32).wrapping_add(index as u32))?;
    Some(V::Addr::from_any(words))
}

/// Who holds the tuple `work.back`; since when is in `work.entry.last_seen_ns` then. Who has been
/// idle for too long is evicted.
#[inline(always)]
fn holder<V: Family>(now: &Now, work: &mut Work<V::Addr>) -> Holder {
    match look_up::<V>(now, work) {
        NOBODY => Holder::Nobody,
        CLOSED if is_let_in(&work.tcp, work.entry.sequence, work.entry.timestamp) => Holder::Closed,
        HALF_OPEN if now.time_ns.wrapping_sub(work.entry.last_seen_ns) > STEAL_AFTER_NS => Holder::HalfOpen,
        _ => Holder::Flow,
    }
}

/// A BPF function of its own returns a number.
const NOBODY: u32 = 0;
const CLOSED: u32 = 1;
const HALF_OPEN: u32 = 2;
const FLOW: u32 = 3;

#[inline(never)]
fn look_up<V: Family>(now: &Now, work: &mut Work<V::Addr>) -> u32 {
    if let Some(entry) = V::nat_established().find(&work.back) {
        // SAFETY: RCU keeps the value until this program returns.
        let seen = unsafe { &*entry };
        if nat::is_alive::<V>(now, seen, work) {
            work.entry.last_seen_ns = seen.last_seen_ns;
            work.entry.sequence = seen.sequence;
            work.entry.timestamp = seen.timestamp;
            return if is_closing(seen.flags) { CLOSED } else { FLOW };
        }
        evict::<V>(work);
    }
    if let Some(entry) = V::nat_half_open().find(&work.back) {
        // SAFETY: as above.
        let seen = unsafe { &*entry };
        let has_ended = seen.flags & NAT_CLIENT_FIRST != 0
            && is_finished(seen.flags)
            && now.time_ns.wrapping_sub(seen.last_seen_ns) > STEAL_AFTER_NS;
        if nat::is_fresh(now, seen) && !has_ended {
            work.entry.last_seen_ns = seen.last_seen_ns;
            work.entry.sequence = seen.sequence;
            work.entry.timestamp = seen.timestamp;
            return if is_finished(seen.flags) { CLOSED } else { HALF_OPEN };
        }
        evict::<V>(work);
    }
    NOBODY
}

/// Whether a backend in TIME_WAIT lets this SYN in (RFC 6191, section 2; Linux's
/// `tcp_timewait_state_process`): by its timestamp if both connections have one, else, or if that
/// is the same, by its sequence number.
#[inline(always)]
fn is_let_in(tcp: &Tcp, sequence: u32, timestamp: u32) -> bool {
    let after = |new: u32, old: u32| (new.wrapping_sub(old) as i32) > 0;
    if timestamp != 0 && tcp.timestamp != 0 && timestamp != tcp.timestamp {
        return after(tcp.timestamp, timestamp);
    }
    sequence == 0 || after(tcp.sequence, sequence)
}

/// Removes the flow that holds the tuple `work.back`, from both tables.
#[inline(never)]
fn evict<V: Family>(work: &mut Work<V::Addr>) {
    evict_from::<V>(V::nat_established(), work);
    evict_from::<V>(V::nat_half_open(), work);
}

#[inline(always)]
fn evict_from<V: Family>(table: &impl FlowTable<V::Addr, NatEntry<V::Addr>>, work: &mut Work<V::Addr>) {
    let Some(entry) = table.find(&work.back) else { return };
    // SAFETY: RCU keeps the value until this program returns.
    work.entry.to = unsafe { &*entry }.peer();
    // The client may have opened another flow since, under the same key.
    if let Some(peer) = table.find(&work.entry.to)
        // SAFETY: as above.
        && unsafe { &*peer }.peer() == work.back
    {
        table.forget(&work.entry.to);
    }
    table.forget(&work.back);
}

/// Claims the tuple `work.to` for the flow `work.from`; false if another CPU was faster, or there
/// is no room.
#[inline(never)]
fn claim<V: Family>(now: &Now, owner: &Owner, work: &mut Work<V::Addr>) -> bool {
    work.back = work.to.reversed();
    work.entry = NatEntry {
        to: work.from.reversed(),
        backend: owner.index,
        generation: owner.backend.generation,
        stats: work.stats,
        flags: 0,
        sequence: 0,
        timestamp: 0,
        reserved: 0,
        last_seen_ns: now.time_ns,
    };
    if !V::nat_half_open().claim(&work.back, &work.entry) {
        return false;
    }
    work.entry.to = work.to.read();
    work.entry.flags = NAT_FORWARD;
    work.entry.sequence = work.tcp.sequence;
    let is_in = V::nat_half_open().put(&work.from, &work.entry);
    if !is_in {
        V::nat_half_open().forget(&work.back);
    }
    is_in
}
