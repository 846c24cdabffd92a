//! The next hop towards a DSR backend, remembered for some jiffies on each CPU: a FIB look-up costs
//! more than all the rest of a packet. Changes of routes and neighbours are followed within that
//! time. See docs/adr/0005.

use core::mem::zeroed;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as FibParams,
    },
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_fib_lookup, bpf_jiffies64},
    macros::btf_map,
};
use lb_common::{
    backend::{Backend, WAY_DSR_L2, WAY_IPIP_V4, WAY_IPIP_V6},
    flow::{Addr, AnyAddr},
    limits::{MAX_BACKENDS, WAY_OUT_NO_TX, WAY_OUT_REDIRECT},
    verdict::Reason,
};

use crate::{
    encap::{PROTOCOL_IPV4, PROTOCOL_IPV6},
    family::{Family, V4, V6},
    maps,
    parse::PROTOCOL_TCP,
    work::Out,
};

pub type Mac = [u8; 6];

/// How a backend is reached from an interface.
#[repr(C)]
pub struct Hop {
    /// When it was looked up.
    at_jiffies: u64,
    /// Of which backend, and for packets from which interface.
    generation: u32,
    ingress: u32,
    pub ifindex: u32,
    /// `WAY_OUT_*` of that interface.
    ways_out: u32,
    /// Bytes from the (outer) IP header on that fit; 0: the kernel did not say.
    pub mtu: u32,
    /// Destination and source MAC as they begin a frame: copied word by word, a copy of bytes
    /// becomes a call.
    pub macs: [u32; 3],
}

/// Backend → next hop.
#[btf_map]
static HOPS: PerCpuArray<Hop, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// From 16 ms (HZ=1000) to 160 ms (HZ=100).
const FRESH_JIFFIES: u64 = 16;

/// The next hop towards the backend at `index`.
#[inline(always)]
pub fn hop<V: Family, C: EbpfContext>(
    context: &C,
    index: u32,
    backend: &'static Backend,
    ifindex: u32,
) -> Result<&'static Hop, Reason> {
    let hop = HOPS.get_ptr_mut(index).ok_or(Reason::NoRoute)?;
    // SAFETY: a per-CPU value: nobody else writes it while this program runs.
    let hop = unsafe { &mut *hop };
    // SAFETY: a helper without arguments; the verifier makes a load of it.
    let now = unsafe { bpf_jiffies64() };
    if now.wrapping_sub(hop.at_jiffies) < FRESH_JIFFIES
        && hop.generation == backend.generation
        && hop.ingress == ifindex
    {
        return Ok(hop);
    }
    hop.generation = 0;
    let refused = look_up::<V, C>(context, backend, ifindex, hop);
    if let Some(reason) = refused {
        return Err(reason);
    }
    hop.at_jiffies = now;
    hop.ingress = ifindex;
    hop.generation = backend.generation;
    Ok(hop)
}

impl Hop {
    /// How a frame that came through `ifindex` leaves for it; `None`: not from XDP.
    #[inline(always)]
    pub fn out(&self, ifindex: u32) -> Option<Out> {
        if self.ifindex == ifindex && self.ways_out & WAY_OUT_NO_TX == 0 {
            Some(Out::Tx)
        } else if self.ways_out & WAY_OUT_REDIRECT != 0 {
            Some(Out::Redirect(self.ifindex))
        } else {
            None
        }
    }
}

/// Asks the kernel's FIB.
#[inline(never)]
fn look_up<V: Family, C: EbpfContext>(
    context: &C,
    backend: &'static Backend,
    ifindex: u32,
    hop: &mut Hop,
) -> Option<Reason> {
    if backend.way != WAY_DSR_L2 && backend.tunnel_source.iter().all(|word| *word == 0) {
        // The agent knew no way to the tunnel's end yet, and so no address of ours on it.
        return Some(Reason::NoRoute);
    }
    let mut fib = params::<V>(backend, ifindex);
    // SAFETY: the context is this program's, and the size is that of the structure.
    let found = unsafe { bpf_fib_lookup(context.as_ptr(), &raw mut fib, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_NO_NEIGH => return Some(Reason::NoNeighbour),
        // TC may know better; what it can't send either it drops and counts.
        BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_FWD_DISABLED | BPF_FIB_LKUP_RET_UNSUPP_LWT => {
            return Some(Reason::NoXdpWayOut);
        }
        _ => return Some(Reason::NoRoute),
    }
    if backend.way == WAY_DSR_L2 && V::fib_next_hop(&fib) != V::Addr::from_any(&backend.address) {
        return Some(Reason::NotOnLink);
    }
    hop.ifindex = fib.ifindex;
    hop.ways_out = maps::way_out(fib.ifindex);
    // SAFETY: a number in every arm of the union.
    hop.mtu = unsafe { fib.__bindgen_anon_1.mtu_result } as u32;
    let [a, b, c, d, e, f] = fib.dmac;
    let [g, h, i, j, k, l] = fib.smac;
    hop.macs = [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([i, j, k, l])];
    None
}

/// What to ask for the way to a backend: the outer packet, or, in `dsr-l2`, the backend itself.
#[inline(always)]
pub fn params<V: Family>(backend: &'static Backend, ifindex: u32) -> FibParams {
    // SAFETY: integers and byte arrays only, for which zero is a value.
    let mut fib: FibParams = unsafe { zeroed() };
    match backend.way {
        WAY_IPIP_V4 => set::<V4>(&mut fib, &backend.tunnel_source, &backend.tunnel),
        WAY_IPIP_V6 => set::<V6>(&mut fib, &backend.tunnel_source, &backend.tunnel),
        _ => V::set_fib(&mut fib, V::Addr::from_any(&[0; 4]), V::Addr::from_any(&backend.address)),
    }
    fib.l4_protocol = match backend.way {
        WAY_IPIP_V4 | WAY_IPIP_V6 if V::IS_V4 => PROTOCOL_IPV4,
        WAY_IPIP_V4 | WAY_IPIP_V6 => PROTOCOL_IPV6,
        _ => PROTOCOL_TCP,
    };
    fib.ifindex = ifindex;
    fib
}

#[inline(always)]
fn set<O: Family>(fib: &mut FibParams, src: &AnyAddr, dst: &AnyAddr) {
    O::set_fib(fib, O::Addr::from_any(src), O::Addr::from_any(dst));
}
