//! What the program knows of a VIP and port.

/// The key of `SERVICES_V4/_V6`: 8 bytes for IPv4, 20 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VipKey<A> {
    pub vip: A,
    pub port_be: u16,
    /// The IP protocol number; only TCP (6) is served.
    pub protocol: u8,
    pub reserved: u8,
}

const _: () = assert!(size_of::<VipKey<u32>>() == 8);
const _: () = assert!(size_of::<VipKey<[u32; 4]>>() == 20);

/// IPPROTO_TCP.
pub const TCP: u8 = 6;

impl<A> VipKey<A> {
    #[inline(always)]
    pub const fn tcp(vip: A, port_be: u16) -> Self {
        Self { vip, port_be, protocol: TCP, reserved: 0 }
    }
}

/// The value of `SERVICES_V4/_V6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// First slot of the service's ring in `RINGS`.
    pub ring_offset: u32,
    /// Slots of its ring; a prime.
    pub ring_len: u32,
    /// The service, the same for all its VIPs of both families; backends name it.
    pub id: u32,
    /// Index of this VIP and port in `SERVICE_STATS`.
    pub stats: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// See `MODE_*`; what a packet does is in its backend's entry, this is for display and for a
    /// restarted agent.
    pub mode: u8,
    pub reserved: [u8; 3],
    /// Since when this VIP and port, which left the file, only lets its flows end; 0 if it is
    /// served. The agent's, for its own restart.
    pub draining_since_ns: u64,
}

const _: () = assert!(size_of::<Service>() == 32);

impl Service {
    /// Hash over the client's address alone.
    pub const FLAG_CLIENT_AFFINITY: u32 = 1;

    /// The same, read member by member: see [`crate::flow::Addr::read`].
    #[inline(always)]
    pub const fn read(&self) -> Self {
        Self {
            ring_offset: self.ring_offset,
            ring_len: self.ring_len,
            id: self.id,
            stats: self.stats,
            flags: self.flags,
            mode: self.mode,
            reserved: self.reserved,
            draining_since_ns: self.draining_since_ns,
        }
    }
}

pub const MODE_NAT: u8 = 1;
pub const MODE_DSR_L2: u8 = 2;
pub const MODE_DSR_IPIP: u8 = 3;

/// The key of `REFUSALS`: what was not forwarded, by VIP and reason.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Refusal {
    /// [`Service::stats`] of the VIP.
    pub stats: u32,
    /// A [`crate::verdict::Reason`] that is no forwarding, as a number.
    pub reason: u32,
}

const _: () = assert!(size_of::<Refusal>() == 8);

/// Counters of one VIP and port, per CPU, in `SERVICE_STATS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Packets from clients, forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Connections begun: in `nat` those whose handshake was completed, in DSR the SYNs forwarded.
    pub connections: u64,
    /// Packets back to clients that pass through this node.
    pub reply_packets: u64,
    pub reply_bytes: u64,
    /// Packets of clients that were reset or dropped.
    pub refused: u64,
}

const _: () = assert!(size_of::<Stats>() == 48);

/// What `ADDRESSES_V4/_V6` say of an address; bits of a `u32`.
pub mod address {
    /// A VIP of some service.
    pub const VIP: u32 = 1;
    /// Also an address of this node: what isn't served goes to the node's own stack.
    pub const NODE: u32 = 2;
    /// An address that SNAT uses: answers of backends come to it.
    pub const SNAT: u32 = 4;
    /// A backend whose flows keep the client's address: its answers are recognised by their source.
    pub const KEEP_SOURCE: u32 = 8;
    /// An address of this node to which peers may send encapsulated packets.
    pub const TUNNEL: u32 = 16;
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: integers only, without padding: the sizes are asserted above.
    unsafe impl aya::Pod for super::VipKey<u32> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VipKey<[u32; 4]> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Refusal {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Stats {}
}
