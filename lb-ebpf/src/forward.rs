//! Sending a planned packet on: next hop, rewrite, way out.

use core::mem::{offset_of, zeroed};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as FibParams, bpf_redir_neigh,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::{
    backend::{Backend, WAY_IPIP_V4},
    flow::Addr,
    limits::{WAY_OUT_NO_TX, WAY_OUT_REDIRECT},
    service::{Stats, address},
    settings::Settings,
    trace::rule,
    verdict::Reason,
};
use network_types::eth::EthHdr;

use crate::{
    decide, encap,
    family::{Family, V4, V6, ip_header},
    hop::{self, Mac},
    icmp, maps,
    packet::{Frame, header},
    parse::L3,
    rewrite,
    work::{Direction, Out, Via, Work},
};

/// A frame that is a socket buffer.
pub trait SkbFrame: Frame {
    fn skb(&self) -> &TcContext;
}

/// Forwards at XDP what [`decide::decide`] has decided; `work.out` says how it leaves.
#[inline(always)]
pub fn at_xdp<V: Family, F: Frame + EbpfContext>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> Reason {
    match work.via {
        Via::LocalDsr | Via::DsrL2 | Via::Ipip => uncommon_dsr_at_xdp::<V, F>(frame, ifindex, work),
        Via::Local => local_at_xdp::<V, F>(frame, work),
        Via::Nat => nat_at_xdp::<V, F>(frame, ifindex, work),
    }
}

/// Rewrites a packet of `nat` for a backend on this node. A BPF function of its own, for its share
/// of the stack.
#[inline(never)]
fn local_at_xdp<V: Family, F: Frame>(frame: &F, work: &Work<V::Addr>) -> Reason {
    let done = rewrite::in_place::<V, F>(frame, L3, work.transport.offset, &work.from, &work.to);
    finish(work, done, Reason::LocalBackend)
}

/// The same for a packet that took a longer look.
#[inline(never)]
fn uncommon_dsr_at_xdp<V: Family, F: Frame + EbpfContext>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> Reason {
    match (maps::SETTINGS.get(0), maps::backend(work.backend)) {
        (Some(settings), Some(backend)) => dsr_at_xdp::<V, F>(frame, settings, backend, ifindex, work),
        _ => Reason::NoBackend,
    }
}

/// Forwards a packet of a DSR service.
#[inline(always)]
pub fn dsr_at_xdp<V: Family, F: Frame + EbpfContext>(
    frame: &F,
    settings: &Settings,
    backend: &'static Backend,
    ifindex: u32,
    work: &mut Work<V::Addr>,
) -> Reason {
    if work.via == Via::LocalDsr {
        return finish(work, Some(()), Reason::LocalBackend);
    }
    match encap::at_xdp::<V, F>(frame, settings, backend, ifindex, work) {
        Ok(()) if work.quoted == 0 => finish(work, Some(()), Reason::ToBackend),
        Ok(()) => finish(work, Some(()), Reason::IcmpError),
        Err(reason) => reason,
    }
}

#[inline(never)]
fn nat_at_xdp<V: Family, F: Frame + EbpfContext>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> Reason {
    if !has_hops_left::<V, F>(frame) {
        return Reason::TtlExpired;
    }
    let mut fib = fib_params::<V>(work, ifindex);
    fib.__bindgen_anon_1.tot_len = work.transport.end.wrapping_sub(L3) as u16;
    // SAFETY: the context is this program's, and the size is that of the structure.
    let found = unsafe { bpf_fib_lookup(frame.as_ptr(), &raw mut fib, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_NO_NEIGH => return Reason::NoNeighbour,
        // TC knows whether it is a super-packet that will be cut; what it can't send either it
        // drops and counts.
        BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_FWD_DISABLED | BPF_FIB_LKUP_RET_UNSUPP_LWT => {
            return Reason::NoXdpWayOut;
        }
        _ => return Reason::NoRoute,
    }
    let way_out = maps::way_out(fib.ifindex);
    work.out = if fib.ifindex == ifindex && way_out & WAY_OUT_NO_TX == 0 {
        Out::Tx
    } else if way_out & WAY_OUT_REDIRECT != 0 {
        Out::Redirect(fib.ifindex)
    } else {
        return Reason::NoXdpWayOut;
    };
    let done = rewrite_whole::<V, F>(frame, work, fib.smac, fib.dmac);
    finish(work, done, forwarded(work, Reason::ToBackend, Reason::ToClient))
}

#[inline(always)]
fn rewrite_whole<V: Family, F: Frame>(frame: &F, work: &Work<V::Addr>, src: Mac, dst: Mac) -> Option<()> {
    if work.quoted != 0 {
        icmp::rewrite::<V, F>(frame, L3, work)?;
    } else {
        rewrite::in_place::<V, F>(frame, L3, work.transport.offset, &work.from, &work.to)?;
    }
    rewrite::age::<V, F>(frame, L3)?;
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    ethernet.set::<Mac, { offset_of!(EthHdr, src_addr) }>(src);
    ethernet.set::<Mac, { offset_of!(EthHdr, dst_addr) }>(dst);
    Some(())
}

/// Forwards at TC ingress what XDP could not; `work.out` says how it leaves.
#[inline(never)]
pub fn at_tc<V: Family, F: SkbFrame>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> Reason {
    let skb = frame.skb();
    match work.via {
        Via::LocalDsr => return finish(work, Some(()), Reason::LocalBackend),
        Via::DsrL2 | Via::Ipip => return dsr_at_tc::<V, F>(frame, ifindex, work),
        Via::Local | Via::Nat if work.quoted != 0 => return Reason::Raced,
        Via::Local => {
            let done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to);
            return finish(work, done, Reason::LocalBackend);
        }
        Via::Nat => {}
    }
    if !has_hops_left::<V, F>(frame) {
        return Reason::TtlExpired;
    }
    let mut fib = fib_params::<V>(work, ifindex);
    if let Some(reason) = look_up_at_tc(skb, &mut fib) {
        return reason;
    }
    let done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to)
        .and_then(|()| rewrite::age_by_helpers::<V>(skb, L3));
    work.out = redirect_neigh(fib.ifindex, V::neighbour(V::fib_next_hop(&fib)));
    finish(work, done, forwarded(work, Reason::ToBackendByTc, Reason::ToClientByTc))
}

#[inline(always)]
fn dsr_at_tc<V: Family, F: SkbFrame>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> Reason {
    let skb = frame.skb();
    let Some(ip) = ip_header::<V, F>(frame, L3) else { return Reason::Rewrite };
    if V::ttl(&ip) <= 1 {
        return Reason::TtlExpired;
    }
    let class = V::traffic_class(&ip);
    let (Some(settings), Some(backend)) = (maps::SETTINGS.get(0), maps::backend(work.backend)) else {
        return Reason::NoBackend;
    };
    let mut fib = hop::params::<V>(backend, ifindex);
    let is_tunnel = work.via == Via::Ipip;
    // SAFETY: the context is this program's.
    if is_tunnel && unsafe { (*skb.skb.skb).gso_size } == 0 {
        // XDP has told those whose packets it saw. The segments of a super-packet are made to fit.
        let len = work.transport.end.wrapping_sub(L3) as u32;
        fib.__bindgen_anon_1.tot_len = len.wrapping_add(encap::overhead(backend)) as u16;
    }
    if let Some(reason) = look_up_at_tc(skb, &mut fib) {
        return reason;
    }
    if !is_tunnel && V::fib_next_hop(&fib) != V::Addr::from_any(&backend.address) {
        return Reason::NotOnLink;
    }
    let mut done = rewrite::age_by_helpers::<V>(skb, L3);
    if is_tunnel {
        done = done.and_then(|()| encap::by_helpers::<V>(skb, backend, settings, class, work));
    }
    work.out = if is_tunnel && backend.way == WAY_IPIP_V4 {
        redirect_neigh(fib.ifindex, V4::neighbour(V4::fib_next_hop(&fib)))
    } else if is_tunnel {
        redirect_neigh(fib.ifindex, V6::neighbour(V6::fib_next_hop(&fib)))
    } else {
        redirect_neigh(fib.ifindex, V::neighbour(V::fib_next_hop(&fib)))
    };
    finish(work, done, forwarded(work, Reason::ToBackendByTc, Reason::ToClientByTc))
}

/// `None`: found, if only without a neighbour.
#[inline(always)]
fn look_up_at_tc(skb: &TcContext, fib: &mut FibParams) -> Option<Reason> {
    // SAFETY: as in `nat_at_xdp`. Without a length the kernel checks the MTU against the buffer
    // itself, segments counted apart.
    let found = unsafe { bpf_fib_lookup(skb.as_ptr(), fib, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => None,
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Some(Reason::TooBig),
        _ => Some(Reason::NoRoute),
    }
}

#[inline(always)]
fn redirect_neigh(ifindex: u32, mut neighbour: bpf_redir_neigh) -> Out {
    // SAFETY: the structure lives until the helper returns, and the size is its own.
    Out::Helper(unsafe { bpf_redirect_neigh(ifindex, &raw mut neighbour, size_of_val(&neighbour) as i32, 0) } as i32)
}

/// Whether a packet that leaves this node is the answer of a backend that keeps the client's
/// address; then `work` says what it becomes.
#[inline(always)]
pub fn is_answer_of_kept<V: Family, F: Frame>(frame: &F, ifindex: u32, work: &mut Work<V::Addr>) -> bool {
    let Some(settings) = maps::SETTINGS.get(0) else { return false };
    if settings.flags & Settings::FLAG_KEEP_SOURCE == 0 {
        return false;
    }
    let Some(ip) = ip_header::<V, F>(frame, L3) else { return false };
    (work.from.src, work.from.dst) = V::addresses(&ip);
    V::address_bits(&work.from.src) & address::KEEP_SOURCE != 0
        && decide::from_backend::<V, F>(frame, ifindex, settings, true, work).is_ok()
}

/// Gives what a backend on this node, or behind it, answers the VIP's address again, at TC egress;
/// its way stays.
#[inline(always)]
pub fn at_egress<V: Family>(skb: &TcContext, work: &Work<V::Addr>) -> Reason {
    if work.quoted != 0 || work.direction != Direction::ToClient {
        return Reason::NotVip;
    }
    let done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to);
    finish(work, done, Reason::ToClientByTc)
}

#[inline(always)]
fn fib_params<V: Family>(work: &Work<V::Addr>, ifindex: u32) -> FibParams {
    // SAFETY: integers and byte arrays only, for which zero is a value.
    let mut fib: FibParams = unsafe { zeroed() };
    V::set_fib(&mut fib, work.to.src, work.next);
    fib.l4_protocol = work.transport.protocol;
    fib.sport = work.to.src_port_be;
    fib.dport = work.to.dst_port_be;
    fib.ifindex = ifindex;
    fib
}

#[inline(always)]
fn has_hops_left<V: Family, F: Frame>(frame: &F) -> bool {
    ip_header::<V, F>(frame, L3).is_some_and(|ip| V::ttl(&ip) > 1)
}

#[inline(always)]
fn forwarded<A>(work: &Work<A>, to_backend: Reason, to_client: Reason) -> Reason {
    if work.quoted != 0 {
        return Reason::IcmpError;
    }
    match work.direction {
        Direction::ToBackend => to_backend,
        Direction::ToClient => to_client,
    }
}

/// Counts what was sent on.
#[inline(always)]
fn finish<A>(work: &Work<A>, done: Option<()>, reason: Reason) -> Reason {
    if done.is_none() {
        return Reason::Rewrite;
    }
    let bytes = work.transport.end.wrapping_sub(L3) as u64;
    match work.direction {
        Direction::ToBackend => {
            maps::count_stats(work.stats, work.backend, |stats: &mut Stats| {
                stats.packets = stats.packets.wrapping_add(1);
                stats.bytes = stats.bytes.wrapping_add(bytes);
            });
            // In `nat` a connection counts when its handshake is complete.
            let is_dsr = work.via != Via::Nat && work.via != Via::Local;
            if work.tcp.opens() && is_dsr && work.quoted == 0 && work.rule != rule::SYN_AGAIN {
                maps::count_stats(work.stats, work.backend, |stats: &mut Stats| {
                    stats.connections = stats.connections.wrapping_add(1);
                });
            }
        }
        Direction::ToClient => maps::count_stats(work.stats, work.backend, |stats: &mut Stats| {
            stats.reply_packets = stats.reply_packets.wrapping_add(1);
            stats.reply_bytes = stats.reply_bytes.wrapping_add(bytes);
        }),
    }
    reason
}
