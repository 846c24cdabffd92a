//! On a backend's node: what comes in a tunnel must fit into one, header and all. So the SYN-ACK of
//! a backend that is reached through a tunnel tells its client a smaller MSS (RFC 9293, section
//! 3.7.1), and no packet grows too large for its way.

use aya_ebpf::{
    EbpfContext, btf_maps::LruHashMap, helpers::generated::bpf_check_mtu, macros::btf_map, programs::TcContext,
};
use lb_common::flow::{V4Addr, V6Addr};
use network_types::tcp::TcpHdr;

use crate::{
    family::{Family, ip_header},
    packet::{Frame, header},
    parse::{self, ACK, L3, PROTOCOL_TCP, SYN, Transport},
    rewrite::TCP_CHECKSUM,
};

/// Addresses that are reached through tunnels; each SYN brings its own again.
const MAX_TUNNELLED: usize = 4096;

/// Destination of SYNs that came in a tunnel → the most bytes, from the IP header on, that fit into
/// it.
#[btf_map]
pub static TUNNELLED_V4: LruHashMap<V4Addr, u32, MAX_TUNNELLED> = LruHashMap::new();
#[btf_map]
pub static TUNNELLED_V6: LruHashMap<V6Addr, u32, MAX_TUNNELLED> = LruHashMap::new();

/// Notes how much fits into the tunnel through which a SYN came: its packet begins at `l3`, behind
/// `surplus` bytes of outer headers.
#[inline(always)]
pub fn note<I: Family, F: Frame + EbpfContext>(
    frame: &F,
    l3: usize,
    transport: &Transport,
    surplus: usize,
) -> Option<()> {
    if transport.protocol != PROTOCOL_TCP {
        return None;
    }
    let flags = header::<TcpHdr, F>(frame, transport.offset)?.u8::<{ parse::TCP_FLAGS }>();
    if flags & (SYN | ACK) != SYN {
        return None;
    }
    let mut mtu = 0_u32;
    // SAFETY: the context is this program's; 0 is the interface of the packet. What it says of this
    // packet does not matter.
    unsafe { bpf_check_mtu(frame.as_ptr(), 0, &raw mut mtu, 0, 0) };
    let room = mtu.checked_sub(surplus as u32)?;
    let (_, vip) = I::addresses(&ip_header::<I, F>(frame, l3)?);
    if I::tunnel_room(&vip) != Some(room) {
        I::set_tunnel_room(&vip, room);
    }
    Some(())
}

/// Makes the MSS of a SYN-ACK that leaves this node fit what was noted for its source. `None`:
/// there was nothing to do.
#[inline(never)]
pub fn clamp<V: Family, F: Frame>(frame: &F, skb: &TcContext) -> Option<()> {
    let transport = V::walk(frame, L3).ok()?;
    if transport.protocol != PROTOCOL_TCP {
        return None;
    }
    let flags = header::<TcpHdr, F>(frame, transport.offset)?.u8::<{ parse::TCP_FLAGS }>();
    if flags & (SYN | ACK) != SYN | ACK {
        return None;
    }
    let (vip, _) = V::addresses(&ip_header::<V, F>(frame, L3)?);
    let headers = size_of::<V::Header>().wrapping_add(size_of::<TcpHdr>()) as u32;
    let most = V::tunnel_room(&vip)?.checked_sub(headers)?;
    let (at, told) = parse::tcp_mss(frame, transport.offset)?;
    if told as u32 <= most {
        return None;
    }
    // An option may begin anywhere, the checksum sums words.
    let is_odd = at.wrapping_sub(transport.offset) & 1 != 0;
    let summed = |mss: u16| if is_odd { mss.to_be().swap_bytes() } else { mss.to_be() } as u64;
    let most = most as u16;
    skb.l4_csum_replace(transport.offset.wrapping_add(TCP_CHECKSUM), summed(told), summed(most), 2).ok()?;
    skb.store(at, &most.to_be(), 0).ok()
}
