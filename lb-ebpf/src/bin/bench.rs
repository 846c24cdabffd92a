//! The programs of `cargo xtask bench`: wrappers, which make one packet after the other of the same
//! buffer and tail-call what is measured; the floor, which Weir is compared with; and targets that
//! do nothing, which tell what the wrapper itself costs. And the floods of the end-to-end suite.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "what packet.rs tells the compiler of its bound"))]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a panic cannot be in the kernel"
)]

// By its path and not from the library, whose maps would come along.
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "the bench needs less of it than the library")]
#[path = "../packet.rs"]
mod packet;
#[cfg(target_arch = "bpf")]
#[path = "../xdp.rs"]
mod xdp;

#[cfg(target_arch = "bpf")]
mod programs {
    use core::mem::offset_of;

    use aya_ebpf::{
        bindings::xdp_action,
        btf_maps::{Array, PerCpuArray, ProgramArray},
        helpers::generated::bpf_redirect,
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use lb_common::{
        bench::{FIRST_PORT, MAX_REPLIES, PORTS, Plan, Reply},
        checksum::fold,
    };
    use network_types::{
        eth::EthHdr,
        ip::{Ipv4Hdr, Ipv6Hdr},
        tcp::TcpHdr,
    };

    use crate::{
        packet::{Frame, Header, header},
        xdp::XdpFrame,
    };

    const L3: usize = EthHdr::LEN;
    const ETHER_IPV4: u16 = 0x0800_u16.to_be();
    const ETHER_IPV6: u16 = 0x86dd_u16.to_be();
    const PROTOCOL_TCP: u8 = 6;

    /// What to send.
    #[btf_map]
    static PLAN: Array<Plan, 1> = Array::new();

    /// What backends send in `nat`, in the order in which it is sent.
    #[btf_map]
    static REPLIES: Array<Reply, { MAX_REPLIES as usize }> = Array::new();

    /// What is measured. One place with a constant index, so that the kernel makes a direct jump of
    /// the tail call.
    #[btf_map]
    static TARGET: ProgramArray<1> = ProgramArray::new();

    const V4: usize = Ipv4Hdr::LEN;
    const V6: usize = Ipv6Hdr::LEN;

    #[xdp(frags)]
    pub fn from_clients_v4(context: XdpContext) -> u32 {
        wrap::<V4>(context, from_client::<V4>)
    }

    #[xdp(frags)]
    pub fn from_clients_v6(context: XdpContext) -> u32 {
        wrap::<V6>(context, from_client::<V6>)
    }

    #[xdp(frags)]
    pub fn from_backends_v4(context: XdpContext) -> u32 {
        wrap::<V4>(context, from_backend::<V4>)
    }

    #[xdp(frags)]
    pub fn from_backends_v6(context: XdpContext) -> u32 {
        wrap::<V6>(context, from_backend::<V6>)
    }

    /// Makes the next packet and calls the target, which does not come back.
    #[inline(always)]
    fn wrap<const IP: usize>(context: XdpContext, address: impl Fn(&XdpFrame, &Plan, u64) -> Option<()>) -> u32 {
        let frame = XdpFrame(context);
        if next_packet::<IP>(&frame, address).is_some() {
            // SAFETY: nothing here wants to be dropped.
            unsafe { TARGET.tail_call(&frame, 0) };
        }
        xdp_action::XDP_ABORTED
    }

    #[inline(always)]
    fn next_packet<const IP: usize>(
        frame: &XdpFrame,
        address: impl Fn(&XdpFrame, &Plan, u64) -> Option<()>,
    ) -> Option<()> {
        // SAFETY: one bench runs at a time, and nobody writes to the plan while it does.
        let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
        // What the target has put in front goes.
        // Masked, or the compiler would add the length to the pointer, which the verifier forbids.
        let surplus = (frame.reachable() & 0xffff).wrapping_sub(plan.len as usize);
        if surplus != 0 {
            frame.adjust_head(surplus as i32)?;
        }
        // By the words that the target will read: a load that spans two stores waits for both to
        // reach the cache.
        let [a, b, c] = plan.macs;
        let ethernet = header::<EthHdr, _>(frame, 0)?;
        ethernet.set::<u32, 0>(a);
        ethernet.set::<u32, 4>(b);
        ethernet.set::<u32, 8>(c);
        ethernet.set::<u16, { offset_of!(EthHdr, ether_type) }>(plan.ether_type);
        let [h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, h12, h13, h14] = plan.headers;
        if IP == V4 {
            let all = header::<[u32; 10], _>(frame, L3)?;
            all.set::<[u32; 4], 0>([h0, h1, h2, h3]);
            all.set::<[u32; 4], 16>([h4, h5, h6, h7]);
            all.set::<u32, 32>(h8);
            all.set::<u32, 36>(h9);
        } else {
            let all = header::<[u32; 15], _>(frame, L3)?;
            all.set::<[u32; 4], 0>([h0, h1, h2, h3]);
            all.set::<[u32; 4], 16>([h4, h5, h6, h7]);
            all.set::<[u32; 4], 32>([h8, h9, h10, h11]);
            all.set::<u32, 48>(h12);
            all.set::<u32, 52>(h13);
            all.set::<u32, 56>(h14);
        }
        let number = plan.next;
        plan.next = number.wrapping_add(1);
        let tcp = header::<TcpHdr, _>(frame, L3.wrapping_add(IP))?;
        tcp.set::<u32, { offset_of!(TcpHdr, seq) }>((number as u32).to_be());
        address(frame, plan, number)
    }

    /// The sender is the client of flow `number × stride`.
    #[inline(always)]
    fn from_client<const IP: usize>(frame: &XdpFrame, plan: &Plan, number: u64) -> Option<()> {
        let flow = (number as u32).wrapping_mul(plan.stride) & plan.flow_mask;
        let port = FIRST_PORT.wrapping_add((flow & PORTS.wrapping_sub(1)) as u16);
        set_source::<IP>(frame, plan.client.wrapping_add(flow / PORTS).to_be())?;
        header::<TcpHdr, _>(frame, L3.wrapping_add(IP))?.set::<u16, { offset_of!(TcpHdr, source) }>(port.to_be());
        Some(())
    }

    /// For the floods of the end-to-end suite: sends the next packet where the run says it came in.
    #[xdp(frags)]
    pub fn flood_v4(context: XdpContext) -> u32 {
        flood::<V4>(context)
    }

    #[xdp(frags)]
    pub fn flood_v6(context: XdpContext) -> u32 {
        flood::<V6>(context)
    }

    #[inline(always)]
    fn flood<const IP: usize>(context: XdpContext) -> u32 {
        let frame = XdpFrame(context);
        let made = next_packet::<IP>(&frame, |frame, plan, number| {
            from_client::<IP>(frame, plan, number)?;
            complete::<IP>(frame, plan, (number as u32).wrapping_add(plan.ahead))
        });
        if made.is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
    }

    /// Sets the sequence number, and the checksums, which the plan has for its first client, port 0
    /// and sequence 0 (RFC 1624).
    #[inline(always)]
    fn complete<const IP: usize>(frame: &XdpFrame, plan: &Plan, sequence: u32) -> Option<()> {
        const IPV4_CHECK: usize = offset_of!(Ipv4Hdr, check);
        const TCP_CHECK: usize = offset_of!(TcpHdr, check);
        let source = if IP == V4 {
            header::<Ipv4Hdr, _>(frame, L3)?.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>()
        } else {
            header::<Ipv6Hdr, _>(frame, L3)?.u32::<{ offset_of!(Ipv6Hdr, src_addr) + 12 }>()
        };
        let moved = halves(!plan.client.to_be()).wrapping_add(halves(source));
        if IP == V4 {
            let ip = header::<Ipv4Hdr, _>(frame, L3)?;
            let check = moved.wrapping_add(!ip.u16::<IPV4_CHECK>() as u64);
            ip.set::<u16, IPV4_CHECK>(!fold(check));
        }
        let tcp = header::<TcpHdr, _>(frame, L3.wrapping_add(IP))?;
        tcp.set::<u32, { offset_of!(TcpHdr, seq) }>(sequence.to_be());
        let check = moved
            .wrapping_add(tcp.u16::<{ offset_of!(TcpHdr, source) }>() as u64)
            .wrapping_add(halves(sequence.to_be()))
            .wrapping_add(!tcp.u16::<TCP_CHECK>() as u64);
        tcp.set::<u16, TCP_CHECK>(!fold(check));
        Some(())
    }

    #[inline(always)]
    fn halves(word: u32) -> u64 {
        ((word & 0xffff) as u64).wrapping_add((word >> 16) as u64)
    }

    /// The sender is a backend, the receiver a port of ours.
    #[inline(always)]
    fn from_backend<const IP: usize>(frame: &XdpFrame, plan: &Plan, number: u64) -> Option<()> {
        let reply = REPLIES.get(plan.first_reply.wrapping_add((number as u32) & plan.flow_mask))?;
        set_source::<IP>(frame, reply.backend)?;
        header::<TcpHdr, _>(frame, L3.wrapping_add(IP))?.set::<u16, { offset_of!(TcpHdr, dest) }>(reply.dst_port_be);
        Some(())
    }

    #[inline(always)]
    fn set_source<const IP: usize>(frame: &XdpFrame, last_word: u32) -> Option<()> {
        if IP == V4 {
            header::<Ipv4Hdr, _>(frame, L3)?.set::<u32, { offset_of!(Ipv4Hdr, src_addr) }>(last_word);
        } else {
            header::<Ipv6Hdr, _>(frame, L3)?.set::<u32, { offset_of!(Ipv6Hdr, src_addr) + 12 }>(last_word);
        }
        Some(())
    }

    /// Does nothing: what is left is the wrapper, for targets that leave the frame as long as it
    /// was.
    #[xdp(frags)]
    pub fn null(_context: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// For `bench forward`: out through another interface, untouched.
    #[xdp(frags)]
    pub fn redirect(_context: XdpContext) -> u32 {
        redirected(Some(()))
    }

    /// The same behind what the floor does.
    #[xdp(frags)]
    pub fn redirect_floor_v4(context: XdpContext) -> u32 {
        redirected(floor_in_v4(&XdpFrame(context)))
    }

    #[xdp(frags)]
    pub fn redirect_floor_v6(context: XdpContext) -> u32 {
        redirected(floor_in_v6(&XdpFrame(context)))
    }

    #[inline(always)]
    fn redirected(done: Option<()>) -> u32 {
        if done.is_none() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: a constant, set before the program was loaded; volatile, as the compiler knows
        // only its first value. The helper takes numbers.
        unsafe { bpf_redirect((&raw const REDIRECT_TO).read_volatile(), 0) as u32 }
    }

    /// The index of that interface.
    #[unsafe(no_mangle)]
    static REDIRECT_TO: u32 = 0;

    /// For `bench forward`: the end of the way.
    #[xdp(frags)]
    pub fn sink(_context: XdpContext) -> u32 {
        if let Some(count) = ARRIVED.get_ptr_mut(0) {
            // SAFETY: a per-CPU value.
            unsafe { *count = (*count).wrapping_add(1) };
        }
        xdp_action::XDP_DROP
    }

    /// Packets that have come to the end.
    #[btf_map]
    static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// Makes room in front and does nothing with it, so that the wrapper has something to undo.
    #[xdp(frags)]
    pub fn push(context: XdpContext) -> u32 {
        moved(context, [-ROOM, 0, 0])
    }

    /// Moves the head twice more: half of what this costs more than `push` is what one move costs,
    /// which is the target's and not the wrapper's.
    #[xdp(frags)]
    pub fn push_thrice(context: XdpContext) -> u32 {
        moved(context, [-ROOM, ROOM, -ROOM])
    }

    /// An outer IPv6 header.
    const ROOM: i32 = V6 as i32;

    #[inline(always)]
    fn moved(context: XdpContext, moves: [i32; 3]) -> u32 {
        let frame = XdpFrame(context);
        for bytes in moves {
            if bytes != 0 && frame.adjust_head(bytes).is_none() {
                return xdp_action::XDP_ABORTED;
            }
        }
        xdp_action::XDP_TX
    }

    /// The least that an encapsulating balancer must do, IPv4 in IPv4: no map, no choice, no
    /// counter. Field by field and summed word by word, as in the kernel's samples.
    #[xdp(frags)]
    pub fn floor_v4(context: XdpContext) -> u32 {
        let frame = XdpFrame(context);
        if floor_in_v4(&frame).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
    }

    /// The same, IPv6 in IPv6.
    #[xdp(frags)]
    pub fn floor_v6(context: XdpContext) -> u32 {
        let frame = XdpFrame(context);
        if floor_in_v6(&frame).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
    }

    const TTL: u8 = 64;

    #[inline(always)]
    fn floor_in_v4(frame: &XdpFrame) -> Option<()> {
        let ethernet = header::<EthHdr, _>(frame, 0)?;
        let ip = header::<Ipv4Hdr, _>(frame, L3)?;
        let is_whole_tcp = ethernet.u16::<{ offset_of!(EthHdr, ether_type) }>() == ETHER_IPV4
            && ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() == 0x45
            && ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>() == PROTOCOL_TCP
            && u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>()) & 0x3fff == 0;
        let len = u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>());
        if !is_whole_tcp || L3.wrapping_add(len as usize) > frame.reachable() {
            return None;
        }
        let [tos] = ip.bytes::<1, { offset_of!(Ipv4Hdr, tos) }>();
        let vip = ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>();
        check_tcp(frame, L3.wrapping_add(V4))?;
        let macs = macs(frame)?;

        frame.adjust_head((V4 as i32).wrapping_neg())?;
        write_ethernet(frame, macs, ETHER_IPV4)?;
        let outer = header::<Ipv4Hdr, _>(frame, L3)?;
        const IPIP: u8 = 4;
        outer.set::<u8, { offset_of!(Ipv4Hdr, vihl) }>(0x45);
        outer.set::<u8, { offset_of!(Ipv4Hdr, tos) }>(tos);
        outer.set::<u16, { offset_of!(Ipv4Hdr, tot_len) }>(len.wrapping_add(V4 as u16).to_be());
        outer.set::<u16, { offset_of!(Ipv4Hdr, id) }>(0);
        outer.set::<u16, { offset_of!(Ipv4Hdr, frags) }>(0);
        outer.set::<u8, { offset_of!(Ipv4Hdr, ttl) }>(TTL);
        outer.set::<u8, { offset_of!(Ipv4Hdr, proto) }>(IPIP);
        outer.set::<u16, { offset_of!(Ipv4Hdr, check) }>(0);
        outer.set::<u32, { offset_of!(Ipv4Hdr, src_addr) }>(vip);
        outer.set::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>(u32::from_ne_bytes([10, 2, 0, 11]));
        let sum = sum_ten(&header::<[u16; 10], _>(frame, L3)?);
        outer.set::<u16, { offset_of!(Ipv4Hdr, check) }>(!fold(sum));
        Some(())
    }

    #[inline(always)]
    fn floor_in_v6(frame: &XdpFrame) -> Option<()> {
        let ethernet = header::<EthHdr, _>(frame, 0)?;
        let ip = header::<Ipv6Hdr, _>(frame, L3)?;
        let is_tcp = ethernet.u16::<{ offset_of!(EthHdr, ether_type) }>() == ETHER_IPV6
            && ip.u8::<{ offset_of!(Ipv6Hdr, vcf) }>() >> 4 == 6
            && ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() == PROTOCOL_TCP;
        let len = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()).wrapping_add(V6 as u16);
        if !is_tcp || L3.wrapping_add(len as usize) > frame.reachable() {
            return None;
        }
        let class = ip.u32::<{ offset_of!(Ipv6Hdr, vcf) }>();
        let vip = ip.words::<{ offset_of!(Ipv6Hdr, dst_addr) }>();
        check_tcp(frame, L3.wrapping_add(V6))?;
        let macs = macs(frame)?;

        frame.adjust_head((V6 as i32).wrapping_neg())?;
        write_ethernet(frame, macs, ETHER_IPV6)?;
        let outer = header::<Ipv6Hdr, _>(frame, L3)?;
        const IPV6: u8 = 41;
        outer.set::<u32, { offset_of!(Ipv6Hdr, vcf) }>(class);
        outer.set::<u16, { offset_of!(Ipv6Hdr, payload_len) }>(len.to_be());
        outer.set::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>(IPV6);
        outer.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(TTL);
        outer.set::<[u32; 4], { offset_of!(Ipv6Hdr, src_addr) }>(vip);
        const NET: u32 = u32::from_ne_bytes([0xfd, 2, 0, 0]);
        outer.set::<[u32; 4], { offset_of!(Ipv6Hdr, dst_addr) }>([NET, 0, 0, 11_u32.to_be()]);
        // There is no checksum; the sum becomes the flow label.
        let sum = sum_ten(&header::<[u16; 10], _>(frame, L3)?)
            .wrapping_add(sum_ten(&header::<[u16; 10], _>(frame, L3.wrapping_add(V4))?));
        outer.set::<u16, { offset_of!(Ipv6Hdr, vcf) + 2 }>(fold(sum));
        Some(())
    }

    /// A whole TCP header.
    #[inline(always)]
    fn check_tcp(frame: &XdpFrame, offset: usize) -> Option<()> {
        const DATA_OFFSET: usize = offset_of!(TcpHdr, _bitfield_1);
        (header::<TcpHdr, _>(frame, offset)?.u8::<DATA_OFFSET>() >> 4 >= 5).then_some(())
    }

    /// RFC 1071, word by word.
    #[inline(always)]
    fn sum_ten(words: &Header<[u16; 10]>) -> u64 {
        (words.u16::<0>() as u64)
            .wrapping_add(words.u16::<2>() as u64)
            .wrapping_add(words.u16::<4>() as u64)
            .wrapping_add(words.u16::<6>() as u64)
            .wrapping_add(words.u16::<8>() as u64)
            .wrapping_add(words.u16::<10>() as u64)
            .wrapping_add(words.u16::<12>() as u64)
            .wrapping_add(words.u16::<14>() as u64)
            .wrapping_add(words.u16::<16>() as u64)
            .wrapping_add(words.u16::<18>() as u64)
    }

    type Mac = [u16; 3];

    /// Destination and source.
    #[inline(always)]
    fn macs(frame: &XdpFrame) -> Option<(Mac, Mac)> {
        let ethernet = header::<EthHdr, _>(frame, 0)?;
        let dst = [ethernet.u16::<0>(), ethernet.u16::<2>(), ethernet.u16::<4>()];
        let src = [ethernet.u16::<6>(), ethernet.u16::<8>(), ethernet.u16::<10>()];
        Some((dst, src))
    }

    /// An Ethernet header, back to where the frame came from.
    #[inline(always)]
    fn write_ethernet(frame: &XdpFrame, (from, to): (Mac, Mac), ether_type_be: u16) -> Option<()> {
        let ethernet = header::<EthHdr, _>(frame, 0)?;
        let ([a, b, c], [d, e, f]) = (to, from);
        ethernet.set::<u16, 0>(a);
        ethernet.set::<u16, 2>(b);
        ethernet.set::<u16, 4>(c);
        ethernet.set::<u16, 6>(d);
        ethernet.set::<u16, 8>(e);
        ethernet.set::<u16, 10>(f);
        ethernet.set::<u16, { offset_of!(EthHdr, ether_type) }>(ether_type_be);
        Some(())
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
