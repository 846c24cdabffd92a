//! Taking the outer header off what a peer sends to a backend on this node.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta},
};
use lb_common::verdict::Reason;
use network_types::eth::EthHdr;

use crate::{
    encap::{PROTOCOL_IPV4, PROTOCOL_IPV6},
    family::{Family, V4, V6, ip_header},
    mss,
    packet::{Frame, header},
    parse::{ETHER_IPV4, ETHER_IPV6, L3},
    work::Work,
};

type Macs = [u8; 12];

/// The bits of congestion notification, and what they say (RFC 3168, section 5).
const ECN: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// Lies before a packet that was taken out of a tunnel, so that weir_ingress leaves it to the stack
/// though its destination is a VIP.
pub const MARK: u32 = 0x5745_4952;

/// Whether an IP packet with this protocol to an address of this node may be for us.
pub const fn is_tunnel(protocol: u8) -> bool {
    protocol == PROTOCOL_IPV4 || protocol == PROTOCOL_IPV6
}

/// What becomes of a tunnel's packet in `work`: only a peer's is ours.
#[inline(always)]
pub fn judge<V: Family>(work: &Work<V::Addr>) -> Reason {
    if V::is_peer(work.from.src) { Reason::Decapsulated } else { Reason::NotPeer }
}

/// Takes the outer header off; `O` is its family. The packet goes up the stack.
#[inline(never)]
pub fn open<O: Family, F: Frame + EbpfContext>(frame: &F, work: &Work<O::Addr>) -> Reason {
    let inner = work.transport.offset;
    let opened = if work.transport.protocol == PROTOCOL_IPV4 {
        check::<V4, F>(frame, work.transport.end, inner).and_then(|()| take_off::<O, V4, F>(frame, inner, ETHER_IPV4))
    } else {
        check::<V6, F>(frame, work.transport.end, inner).and_then(|()| take_off::<O, V6, F>(frame, inner, ETHER_IPV6))
    };
    match opened {
        Some(()) => Reason::Decapsulated,
        None => Reason::BadInner,
    }
}

/// Whether a whole packet of family `I` begins at `inner`. If it opens a connection, how much fits
/// into its tunnel is noted.
#[inline(always)]
fn check<I: Family, F: Frame + EbpfContext>(frame: &F, end: usize, inner: usize) -> Option<()> {
    let transport = I::walk(frame, inner).ok()?;
    if transport.end > end {
        return None;
    }
    let _is_syn = mss::note::<I, F>(frame, inner, &transport, inner.wrapping_sub(L3)).is_some();
    Some(())
}

#[inline(always)]
fn take_off<O: Family, I: Family, F: Frame + EbpfContext>(frame: &F, inner: usize, ether_type_be: u16) -> Option<()> {
    let macs = header::<EthHdr, F>(frame, 0)?.bytes::<12, 0>();
    let outer_class = O::traffic_class(&ip_header::<O, F>(frame, L3)?);
    let ip = ip_header::<I, F>(frame, inner)?;
    // What the way has marked goes on (RFC 6040, section 4.2).
    let class = I::traffic_class(&ip);
    match (class & ECN, outer_class & ECN) {
        // A sender that does not know of congestion marks must learn it by loss.
        (NOT_ECT, CE) => return None,
        (_, CE) => I::set_traffic_class(&ip, class | CE),
        (ECT0, ECT1) => I::set_traffic_class(&ip, class & !ECN | ECT1),
        _ => {}
    }
    let surplus = inner.wrapping_sub(L3);
    // The verifier wants to see the bound.
    if surplus > 512 {
        return None;
    }
    // SAFETY: the context is this program's.
    if unsafe { bpf_xdp_adjust_head(frame.as_ptr().cast(), surplus as i32) } != 0 {
        return None;
    }
    let ethernet = header::<EthHdr, F>(frame, 0)?;
    ethernet.set::<Macs, 0>(macs);
    ethernet.set::<u16, { offset_of!(EthHdr, ether_type) }>(ether_type_be);
    Some(())
}

/// Leaves [`MARK`] before the packet. A driver without metadata refuses: then weir_ingress takes
/// the packet for a client's, if this node balances that VIP as well.
#[inline(always)]
pub fn mark<F: Frame + EbpfContext>(frame: &F, meta: impl Fn() -> usize) {
    const LEN: i32 = size_of::<u32>() as i32;
    // SAFETY: the context is this program's.
    if unsafe { bpf_xdp_adjust_meta(frame.as_ptr().cast(), -LEN) } != 0 {
        return;
    }
    let at = meta();
    if at.wrapping_add(size_of::<u32>()) <= frame.start() {
        // SAFETY: the four bytes before the packet were just seen to be metadata.
        unsafe { *(at as *mut u32) = MARK };
    }
}
