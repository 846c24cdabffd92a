//! Sending a planned packet on: next hop, rewrite, way out.

use core::mem::{offset_of, zeroed};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as FibParams,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::{
    limits::{WAY_OUT_NO_TX, WAY_OUT_REDIRECT},
    service::{Stats, address},
    settings::Settings,
    verdict::{Kind, Reason},
};
use network_types::eth::EthHdr;

use crate::{
    decide,
    family::{Family, ip_header},
    icmp, maps,
    packet::{Frame, header},
    parse::{L3, SYN},
    rewrite,
    work::{Direction, Via, Work},
};

/// How a frame leaves.
#[derive(Clone, Copy)]
pub enum Out {
    /// As the reason's kind says: to the stack, or nowhere.
    None,
    /// Back through the interface on which it came.
    Tx,
    /// Through another one.
    Redirect(u32),
    /// As the helper said that was asked to redirect.
    Helper(i32),
}

/// A frame that is a socket buffer.
pub trait SkbFrame: Frame {
    fn skb(&self) -> &TcContext;
}

/// What was done with a packet.
#[must_use]
#[derive(Clone, Copy)]
pub struct Verdict {
    pub reason: Reason,
    pub out: Out,
}

impl Verdict {
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self { reason, out: Out::None }
    }
}

type Mac = [u8; 6];

/// Forwards at XDP.
#[inline(never)]
pub fn at_xdp<V: Family, F: Frame + EbpfContext>(frame: &F, ifindex: u32, work: &Work<V::Addr>) -> Verdict {
    if work.via == Via::Local {
        let done = rewrite::in_place::<V, F>(frame, L3, work.transport.offset, &work.from, &work.to);
        return finish(work, done, Reason::LocalBackend, Out::None);
    }
    if !has_hops_left::<V, F>(frame) {
        return Verdict::of(Reason::TtlExpired);
    }
    let mut fib = fib_params::<V>(work, ifindex);
    fib.__bindgen_anon_1.tot_len = work.transport.end.wrapping_sub(L3) as u16;
    // SAFETY: the context is this program's, and the size is that of the structure.
    let found = unsafe { bpf_fib_lookup(frame.as_ptr(), &raw mut fib, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_NO_NEIGH => return Verdict::of(Reason::NoNeighbour),
        // TC knows whether it is a super-packet that will be cut; what it can't send either it drops and counts.
        BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_FWD_DISABLED | BPF_FIB_LKUP_RET_UNSUPP_LWT => {
            return Verdict::of(Reason::NoXdpWayOut);
        }
        _ => return Verdict::of(Reason::NoRoute),
    }
    if work.via == Via::DsrL2 && V::fib_next_hop(&fib) != work.next {
        return Verdict::of(Reason::NotOnLink);
    }
    let way_out = maps::way_out(fib.ifindex);
    let out = if fib.ifindex == ifindex && way_out & WAY_OUT_NO_TX == 0 {
        Out::Tx
    } else if way_out & WAY_OUT_REDIRECT != 0 {
        Out::Redirect(fib.ifindex)
    } else {
        return Verdict::of(Reason::NoXdpWayOut);
    };
    let done = rewrite_whole::<V, F>(frame, work, fib.smac, fib.dmac);
    finish(work, done, forwarded(work, Reason::ToBackend, Reason::ToClient), out)
}

#[inline(always)]
fn rewrite_whole<V: Family, F: Frame>(frame: &F, work: &Work<V::Addr>, src: Mac, dst: Mac) -> Option<()> {
    if work.quoted != 0 {
        icmp::rewrite::<V, F>(frame, L3, work)?;
    } else if work.via == Via::Nat {
        rewrite::in_place::<V, F>(frame, L3, work.transport.offset, &work.from, &work.to)?;
    }
    rewrite::age::<V, F>(frame, L3)?;
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    ethernet.set::<Mac, { offset_of!(EthHdr, src_addr) }>(src);
    ethernet.set::<Mac, { offset_of!(EthHdr, dst_addr) }>(dst);
    Some(())
}

/// Forwards at TC ingress what XDP could not.
#[inline(never)]
pub fn at_tc<V: Family, F: SkbFrame>(frame: &F, ifindex: u32, work: &Work<V::Addr>) -> Verdict {
    let skb = frame.skb();
    if work.quoted != 0 {
        return Verdict::of(Reason::Raced);
    }
    if work.via == Via::Local {
        let done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to);
        return finish(work, done, Reason::LocalBackend, Out::None);
    }
    if !has_hops_left::<V, F>(frame) {
        return Verdict::of(Reason::TtlExpired);
    }
    let mut fib = fib_params::<V>(work, ifindex);
    // SAFETY: as in `at_xdp`. Without a length the kernel checks the MTU against the buffer itself, segments counted apart.
    let found = unsafe { bpf_fib_lookup(skb.as_ptr(), &raw mut fib, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {}
        BPF_FIB_LKUP_RET_FRAG_NEEDED => return Verdict::of(Reason::TooBig),
        _ => return Verdict::of(Reason::NoRoute),
    }
    if work.via == Via::DsrL2 && V::fib_next_hop(&fib) != work.next {
        return Verdict::of(Reason::NotOnLink);
    }
    let mut done = Some(());
    if work.via == Via::Nat {
        done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to);
    }
    done = done.and_then(|()| rewrite::age_by_helpers::<V>(skb, L3));
    let mut neighbour = V::neighbour(V::fib_next_hop(&fib));
    // SAFETY: the structure lives until the helper returns, and the size is its own.
    let action =
        unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut neighbour, size_of_val(&neighbour) as i32, 0) } as i32;
    let reason = forwarded(work, Reason::ToBackendByTc, Reason::ToClientByTc);
    finish(work, done, reason, Out::Helper(action))
}

/// Whether a packet that leaves this node is the answer of a backend that keeps the client's address; then `work` says what it becomes.
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

/// Gives what a backend on this node, or behind it, answers the VIP's address again, at TC egress; its way stays.
#[inline(always)]
pub fn at_egress<V: Family>(skb: &TcContext, work: &Work<V::Addr>) -> Verdict {
    if work.quoted != 0 || work.direction != Direction::ToClient {
        return Verdict::of(Reason::NotVip);
    }
    let done = rewrite::by_helpers::<V>(skb, L3, work.transport.offset, &work.from, &work.to);
    finish(work, done, Reason::ToClientByTc, Out::None)
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
fn finish<A>(work: &Work<A>, done: Option<()>, reason: Reason, out: Out) -> Verdict {
    if done.is_none() {
        return Verdict::of(Reason::Rewrite);
    }
    let bytes = work.transport.end.wrapping_sub(L3) as u64;
    match work.direction {
        Direction::ToBackend => {
            // In `nat` a connection counts when its handshake is complete.
            let begun = (work.via == Via::DsrL2 && work.tcp.has(SYN)) as u64;
            maps::count_stats(work.stats, work.backend, |stats: &mut Stats| {
                stats.packets = stats.packets.wrapping_add(1);
                stats.bytes = stats.bytes.wrapping_add(bytes);
                stats.connections = stats.connections.wrapping_add(begun);
            });
        }
        Direction::ToClient => maps::count_stats(work.stats, work.backend, |stats: &mut Stats| {
            stats.reply_packets = stats.reply_packets.wrapping_add(1);
            stats.reply_bytes = stats.reply_bytes.wrapping_add(bytes);
        }),
    }
    Verdict { reason, out }
}

/// Whether a verdict ends the packet here.
#[inline(always)]
pub fn is_drop(reason: Reason) -> bool {
    match reason.kind() {
        Kind::Drop => true,
        Kind::Pass | Kind::Forward | Kind::Reject => false,
    }
}
