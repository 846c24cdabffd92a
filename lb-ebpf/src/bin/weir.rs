//! Entry points of Weir's programs, and the only place where a verdict becomes an action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a panic cannot be in the kernel"
)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
        helpers::generated::bpf_redirect,
        macros::{classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use aya_log_ebpf::debug;
    use lb_common::{
        limits::WAY_OUT_NO_TX,
        settings::Settings,
        trace::{HOOK_EGRESS, HOOK_INGRESS, HOOK_XDP, NO_SERVICE},
        verdict::{EVENT_TOO_BIG_UNSAID, Kind, Reason},
    };
    use lb_ebpf::{
        answer, decap, decide,
        family::{Family, V4, V6},
        forward, maps, mss,
        packet::Frame,
        parse::{self, ETHER_IPV4, ETHER_IPV6, Link},
        trace,
        work::{self, Out, Program, Work},
        xdp::XdpFrame,
    };

    /// XDP, on every interface of the configuration.
    #[xdp(frags)]
    pub fn weir_xdp(context: XdpContext) -> u32 {
        let frame = XdpFrame(context);
        let ifindex = frame.0.ingress_ifindex() as u32;
        match parse::link(&frame) {
            Some(link) if link.ether_type_be == ETHER_IPV4 => xdp_packet::<V4>(&frame, &link, ifindex),
            Some(link) if link.ether_type_be == ETHER_IPV6 => xdp_packet::<V6>(&frame, &link, ifindex),
            _ => {
                maps::count(ifindex, Reason::NotIp);
                xdp_action::XDP_PASS
            }
        }
    }

    #[inline(always)]
    fn xdp_packet<V: Family>(frame: &XdpFrame, link: &Link, ifindex: u32) -> u32 {
        let (Some(work), Some(settings)) = (work::place::<V::Addr>(Program::Xdp), maps::SETTINGS.get(0)) else {
            return xdp_action::XDP_PASS;
        };
        work.begin();
        let quick = if link.tagged { None } else { decide::quick::<V, _>(frame, settings, ifindex, work) };
        let mut reason = match quick {
            Some(reason) => reason,
            None => match decide::decide::<V, _>(frame, link, ifindex, work) {
                Ok(()) => forward::at_xdp::<V, _>(frame, ifindex, work),
                Err(reason) => reason,
            },
        };
        // What nearly all packets are is asked for first.
        if reason != Reason::ToBackend && reason != Reason::NotVip {
            reason = uncommon::<V>(frame, ifindex, reason, work);
        }
        maps::count(ifindex, reason);
        if reason != Reason::NotVip {
            trace::tell::<V>(settings, HOOK_XDP, ifindex, reason, work);
        }
        match work.out {
            Out::Tx => xdp_action::XDP_TX,
            // SAFETY: a helper that takes numbers.
            Out::Redirect(to) => unsafe { bpf_redirect(to, 0) as u32 },
            Out::Helper(_) => xdp_action::XDP_ABORTED,
            Out::None if reason.kind() == Kind::Pass => xdp_action::XDP_PASS,
            Out::None => xdp_action::XDP_DROP,
        }
    }

    /// Does what is left to do for a packet that is not sent on, and counts it at its service.
    #[inline(always)]
    fn uncommon<V: Family>(frame: &XdpFrame, ifindex: u32, reason: Reason, work: &mut Work<V::Addr>) -> Reason {
        let mut reason = reason;
        if reason == Reason::Decapsulated {
            reason = decap::open::<V, _>(frame, work);
            if reason == Reason::Decapsulated {
                decap::mark(frame, || frame.0.metadata());
            }
        }
        if reason.kind() == Kind::Reject {
            reason = answer::<V>(frame, ifindex, reason, work);
        }
        if reason.kind() != Kind::Forward && work.stats != NO_SERVICE {
            maps::count_refusal(work.stats, reason);
        }
        if reason.kind() == Kind::Drop {
            debug!(&frame.0, "if {} dropped: reason {}", ifindex, reason as u32);
        }
        reason
    }

    /// Makes the answer of a packet that is rejected, to be sent back through the interface on
    /// which it came.
    #[inline(always)]
    fn answer<V: Family>(frame: &XdpFrame, ifindex: u32, reason: Reason, work: &mut Work<V::Addr>) -> Reason {
        let answered = match reason {
            Reason::Echo => answer::echo::<V, _>(frame, work),
            Reason::PacketTooBig if !answer::may_say_too_big() => {
                maps::count_event(ifindex, EVENT_TOO_BIG_UNSAID);
                return Reason::TooBig;
            }
            Reason::PacketTooBig => answer::too_big::<V, _>(frame, work),
            _ => answer::reset::<V, _>(frame, work),
        };
        if answered.is_none() {
            return Reason::Rewrite;
        }
        work.out = if maps::way_out(ifindex) & WAY_OUT_NO_TX == 0 { Out::Tx } else { Out::Redirect(ifindex) };
        reason
    }

    /// TC ingress: forwards what XDP passed because it could not.
    #[classifier]
    pub fn weir_ingress(context: TcContext) -> i32 {
        let Some((frame, link)) = SkbFrame::reach(context) else { return TC_ACT_UNSPEC };
        let ifindex = frame.ingress();
        if frame.has_mark() {
            return TC_ACT_UNSPEC;
        }
        match link.ether_type_be {
            ETHER_IPV4 => tc_ingress::<V4>(&frame, &link, ifindex),
            ETHER_IPV6 => tc_ingress::<V6>(&frame, &link, ifindex),
            _ => TC_ACT_UNSPEC,
        }
    }

    #[inline(always)]
    fn tc_ingress<V: Family>(frame: &SkbFrame, link: &Link, ifindex: u32) -> i32 {
        let (Some(work), Some(settings)) = (work::place::<V::Addr>(Program::Ingress), maps::SETTINGS.get(0)) else {
            return TC_ACT_UNSPEC;
        };
        work.begin();
        let mut reason = match decide::decide::<V, _>(frame, link, ifindex, work) {
            Ok(()) => forward::at_tc::<V, _>(frame, ifindex, work),
            Err(reason) => reason,
        };
        let action = match (reason.kind(), work.out) {
            // XDP has counted it.
            (Kind::Pass, _) => return TC_ACT_UNSPEC,
            (Kind::Forward, Out::Helper(action)) => action,
            (Kind::Drop, _) => TC_ACT_SHOT,
            // XDP would have answered: what it saw has changed since.
            (Kind::Forward | Kind::Reject, _) => {
                reason = Reason::Raced;
                TC_ACT_SHOT
            }
        };
        maps::count(ifindex, reason);
        if reason.kind() != Kind::Forward && work.stats != NO_SERVICE {
            maps::count_refusal(work.stats, reason);
        }
        trace::tell::<V>(settings, HOOK_INGRESS, ifindex, reason, work);
        action
    }

    /// TC egress: what a backend on this node, or behind it, answers, comes from the VIP again.
    #[classifier]
    pub fn weir_egress(context: TcContext) -> i32 {
        let Some((frame, link)) = SkbFrame::reach(context) else { return TC_ACT_UNSPEC };
        if link.tagged {
            return TC_ACT_UNSPEC;
        }
        match link.ether_type_be {
            ETHER_IPV4 => tc_egress::<V4>(&frame),
            ETHER_IPV6 => tc_egress::<V6>(&frame),
            _ => TC_ACT_UNSPEC,
        }
    }

    #[inline(always)]
    fn tc_egress<V: Family>(frame: &SkbFrame) -> i32 {
        let ifindex = frame.interface();
        let (Some(work), Some(settings)) = (work::place::<V::Addr>(Program::Egress), maps::SETTINGS.get(0)) else {
            return TC_ACT_UNSPEC;
        };
        work.begin();
        if settings.flags & Settings::FLAG_TUNNEL != 0 {
            let _was_clamped = mss::clamp::<V, _>(frame, &frame.0).is_some();
        }
        if !forward::is_answer_of_kept::<V, _>(frame, ifindex, work) {
            return TC_ACT_UNSPEC;
        }
        let reason = forward::at_egress::<V>(&frame.0, work);
        let action = match reason.kind() {
            Kind::Pass => return TC_ACT_UNSPEC,
            Kind::Forward => TC_ACT_UNSPEC,
            Kind::Drop | Kind::Reject => TC_ACT_SHOT,
        };
        maps::count(ifindex, reason);
        trace::tell::<V>(settings, HOOK_EGRESS, ifindex, reason, work);
        action
    }

    /// A packet at TC.
    pub struct SkbFrame(TcContext);

    /// Headers must be reachable: Ethernet, IPv6 with some extensions or a quoted packet, TCP with
    /// options.
    const REACH: u32 = 192;

    impl SkbFrame {
        /// Makes the headers reachable, and reads the link's.
        #[inline(always)]
        fn reach(context: TcContext) -> Option<(Self, Link)> {
            let frame = Self(context);
            let wanted = frame.0.len().min(REACH);
            if frame.reachable() < wanted as usize {
                frame.0.pull_data(wanted).ok()?;
            }
            let link = parse::link(&frame)?;
            Some((frame, link))
        }

        /// Whether XDP took it out of a tunnel: see [`decap::MARK`].
        #[inline(always)]
        fn has_mark(&self) -> bool {
            // SAFETY: the context is this program's.
            let (meta, data) = unsafe {
                let skb = self.0.skb.skb;
                (
                    (&raw const (*skb).data_meta).read_volatile() as usize,
                    (&raw const (*skb).data).read_volatile() as usize,
                )
            };
            // SAFETY: the four bytes were just seen to be metadata.
            meta.wrapping_add(size_of::<u32>()) <= data && unsafe { *(meta as *const u32) } == decap::MARK
        }

        #[inline(always)]
        fn ingress(&self) -> u32 {
            // SAFETY: the context is this program's.
            unsafe { (*self.0.skb.skb).ingress_ifindex }
        }

        #[inline(always)]
        fn interface(&self) -> u32 {
            // SAFETY: the context is this program's.
            unsafe { (*self.0.skb.skb).ifindex }
        }
    }

    impl Frame for SkbFrame {
        const AT_TC: bool = true;

        #[inline(always)]
        fn start(&self) -> usize {
            // SAFETY: as for XDP.
            unsafe { (&raw const (*self.0.skb.skb).data).read_volatile() as usize }
        }

        #[inline(always)]
        fn end(&self) -> usize {
            // SAFETY: as for XDP.
            unsafe { (&raw const (*self.0.skb.skb).data_end).read_volatile() as usize }
        }

        #[inline(always)]
        fn whole_len(&self) -> usize {
            self.0.len() as usize
        }
    }

    impl forward::SkbFrame for SkbFrame {
        #[inline(always)]
        fn skb(&self) -> &TcContext {
            &self.0
        }
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
