//! What a program knows of the packet in its hands. It lies in a per-CPU map: with IPv6 it would
//! not fit the 512 bytes of stack.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    exception::Exception,
    flow::{Flow, V6Addr},
    nat::NatEntry,
    trace::{NO_SERVICE, rule},
};

use crate::parse::{L3, Tcp, Transport};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToBackend,
    ToClient,
}

/// How a packet goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// Rewritten and routed.
    Nat,
    /// Rewritten, for a backend on this node.
    Local,
    /// Unchanged, for a backend on this node that holds the VIP.
    LocalDsr,
    /// Unchanged but for its MAC addresses.
    DsrL2,
    /// Unchanged behind another IP header.
    Ipip,
}

/// How a frame leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

/// One packet: what was read of it, and what is decided. References can't be kept in a map, so
/// indexes are.
pub struct Work<A> {
    /// Its 5-tuple as it came.
    pub from: Flow<A>,
    /// What its 5-tuple becomes; in DSR it stays.
    pub to: Flow<A>,
    /// The tuple of the way back, where one is looked for.
    pub back: Flow<A>,
    /// The best tuple in use that could be taken after all.
    pub spare: Flow<A>,
    /// The address whose next hop it takes.
    pub next: A,
    /// A flow entry under construction.
    pub entry: NatEntry<A>,
    pub tcp: Tcp,
    pub transport: Transport,
    /// Where the packet begins that an ICMP error quotes; 0 for TCP.
    pub quoted: usize,
    pub backend: u32,
    /// Index of the VIP's counters; [`NO_SERVICE`] until a service is found.
    pub stats: u32,
    pub via: Via,
    pub direction: Direction,
    /// Set when the packet is ready to leave.
    pub out: Out,
    /// The hash of the flow, whatever the affinity.
    pub hash: u64,
    /// The slot as it was read, and its place in `RINGS`; the word is 0 where no slot was asked.
    pub word: u64,
    pub slot: u32,
    /// From which rule the backend comes: `lb_common::trace::rule`.
    pub rule: u8,
    /// An exception under construction.
    pub exception: Exception,
    /// The most bytes from the IP header on that the way to the backend takes, when a packet was
    /// larger.
    pub mtu: u32,
}

impl<A> Work<A> {
    /// Forgets what the last packet left that is read without having been written.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.out = Out::None;
        self.stats = NO_SERVICE;
        self.backend = 0;
        self.word = 0;
        self.rule = rule::NONE;
    }

    /// Forgets the ports and flags of the last packet: of this one they may never be read, and a
    /// trace tells what there is.
    #[inline(always)]
    pub fn forget_transport(&mut self) {
        self.from.src_port_be = 0;
        self.from.dst_port_be = 0;
        self.tcp.flags = 0;
        self.transport.protocol = 0;
        self.transport.end = L3;
        self.quoted = 0;
    }
}

/// Room for a [`Work`] of the larger family.
type Room = [u64; size_of::<Work<V6Addr>>().div_ceil(8)];

/// A place for each program: they don't interrupt each other on a CPU, but nothing promises it.
#[btf_map]
static WORK: PerCpuArray<Room, 3> = PerCpuArray::new();

/// The programs that have a place.
#[derive(Clone, Copy)]
pub enum Program {
    Xdp = 0,
    Ingress = 1,
    Egress = 2,
}

/// The place of `program`, holding what the last packet left there.
#[inline(always)]
pub fn place<A>(program: Program) -> Option<&'static mut Work<A>> {
    const { assert!(size_of::<Work<A>>() <= size_of::<Room>() && align_of::<Work<A>>() <= 8) };
    let room = WORK.get_ptr_mut(program as u32)?;
    // SAFETY: the room is large enough, this CPU's alone while the program runs, and what is read
    // of it has been written before: the enums by every path that reads them, the rest is integers.
    Some(unsafe { &mut *room.cast() })
}
