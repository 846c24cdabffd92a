//! Telling decisions to user space, while somebody asks for them.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, btf_maps::PerCpuArray, helpers::generated::bpf_ktime_get_boot_ns, macros::btf_map,
};
use lb_common::{
    flow::{Addr, AnyAddr, Flow},
    settings::Settings,
    trace::{TraceEvent, TraceFilter},
    verdict::{Kind, Reason},
};

use crate::{
    family::Family,
    maps,
    parse::{L3, PROTOCOL_TCP},
    work::{Via, Work},
};

/// What a CPU has told within the present second.
#[repr(C)]
struct Told {
    second: u64,
    events: u32,
    missed: u32,
    /// [`TraceFilter::number`] of the trace to which that belongs.
    trace: u32,
    reserved: u32,
}

#[btf_map]
static TOLD: PerCpuArray<Told, 1> = PerCpuArray::new();

const SECOND_NS: u64 = 1_000_000_000;

/// Tells what was decided for the packet in `work`, if somebody wants to know.
#[inline(always)]
pub fn tell<V: Family>(settings: &Settings, hook: u8, ifindex: u32, reason: Reason, work: &Work<V::Addr>) {
    if settings.flags & Settings::FLAG_TRACE != 0 {
        tell_if_wanted::<V>(hook, ifindex, reason as u32, reason.kind() as u32, work);
    }
}

#[inline(never)]
fn tell_if_wanted<V: Family>(hook: u8, ifindex: u32, reason: u32, kind: u32, work: &Work<V::Addr>) {
    let (Some(filter), Some(told)) = (maps::TRACE_FILTER.get(0), TOLD.get_ptr_mut(0)) else { return };
    let is_refused = kind == Kind::Reject as u32 || kind == Kind::Drop as u32;
    let is_rewritten = kind == Kind::Forward as u32 && matches!(work.via, Via::Nat) && work.quoted == 0;
    if filter.drops_only != 0 && !is_refused {
        return;
    }
    let is_wanted = fits::<V>(filter, &work.from) || (is_rewritten && fits::<V>(filter, &work.to));
    if !is_wanted {
        return;
    }
    // SAFETY: a per-CPU value: nobody else writes it while this program runs.
    let told = unsafe { &mut *told };
    // SAFETY: a helper without arguments.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    if told.trace != filter.number {
        *told = Told { second: 0, events: 0, missed: 0, trace: filter.number, reserved: 0 };
    }
    let second = time_ns / SECOND_NS;
    if told.second != second {
        told.second = second;
        told.events = 0;
    }
    if told.events >= filter.rate {
        told.missed = told.missed.wrapping_add(1);
        return;
    }
    told.events = told.events.wrapping_add(1);
    let Some(mut event) = maps::TRACE.reserve_untyped::<TraceEvent>(0) else {
        told.missed = told.missed.wrapping_add(1);
        return;
    };
    let is_tcp = work.transport.protocol == PROTOCOL_TCP;
    let nobody = [0; 4];
    event.write(TraceEvent {
        time_ns,
        word: work.word,
        src: work.from.src.to_any(),
        dst: work.from.dst.to_any(),
        src_port_be: if is_tcp || work.quoted != 0 { work.from.src_port_be } else { 0 },
        dst_port_be: if is_tcp || work.quoted != 0 { work.from.dst_port_be } else { 0 },
        to_src: if is_rewritten { work.to.src.to_any() } else { nobody },
        to_dst: if is_rewritten { work.to.dst.to_any() } else { nobody },
        to_src_port_be: if is_rewritten { work.to.src_port_be } else { 0 },
        to_dst_port_be: if is_rewritten { work.to.dst_port_be } else { 0 },
        family: if V::IS_V4 { 4 } else { 6 },
        tcp_flags: if is_tcp { work.tcp.flags } else { 0 },
        hook,
        rule: work.rule,
        ifindex,
        len: work.transport.end.wrapping_sub(L3) as u32,
        stats: work.stats,
        slot: work.slot,
        backend: work.backend,
        reason,
        sequence: work.tcp.sequence,
        missed: told.missed,
        reserved: 0,
    });
    told.missed = 0;
    // The agent looks by itself.
    event.submit(BPF_RB_NO_WAKEUP as u64);
}

/// Whether a packet with this 5-tuple is wanted, whichever way it goes.
#[inline(always)]
fn fits<V: Family>(filter: &TraceFilter, flow: &Flow<V::Addr>) -> bool {
    if filter.family != 0 && (filter.family == 4) != V::IS_V4 {
        return false;
    }
    let is = |wanted: &AnyAddr, port_be: u16, address: V::Addr, its_port_be: u16| {
        (*wanted == [0; 4] || V::Addr::from_any(wanted) == address) && (port_be == 0 || port_be == its_port_be)
    };
    let fits = |src: V::Addr, src_port_be, dst: V::Addr, dst_port_be| {
        is(&filter.client, filter.client_port_be, src, src_port_be)
            && is(&filter.vip, filter.vip_port_be, dst, dst_port_be)
    };
    fits(flow.src, flow.src_port_be, flow.dst, flow.dst_port_be)
        || fits(flow.dst, flow.dst_port_be, flow.src, flow.src_port_be)
}
