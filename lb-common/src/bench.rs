//! What `cargo xtask bench`, and the floods of the end-to-end suite, tell their programs,
//! lb-ebpf/src/bin/bench.rs.

/// The one entry of `PLAN`: the packets of a run, one frame over and over, with another client each
/// time.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The number of the next packet, and its sequence number; the wrapper counts it up.
    pub next: u64,
    /// Bytes of the frame.
    pub len: u64,
    /// The frame's first twelve bytes as they lie in memory, its EtherType, and its headers from
    /// there on.
    pub macs: [u32; 3],
    pub ether_type: u16,
    pub reserved: u16,
    pub headers: [u32; HEADER_WORDS],
    /// Flows − 1; the number of flows is a power of two.
    pub flow_mask: u32,
    /// Packet `n` is of flow `n × stride mod flows`. Odd, so that all flows take turns; large, so
    /// that packets that follow each other are of flows far apart.
    pub stride: u32,
    /// The last word of the first client's address, in host order; [`PORTS`] flows share an
    /// address.
    pub client: u32,
    /// The place in `REPLIES` of the first packet, for the wrappers of backends.
    pub first_reply: u32,
    /// For floods: what sequence numbers are ahead of the packets' numbers.
    pub ahead: u32,
}

#[cfg(feature = "user")]
impl Plan {
    /// One flow of packets with this frame; `None` if it has no Ethernet header. Of the rest only
    /// the headers go on, as far as there is room.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let (macs, rest) = frame.split_at_checked(12)?;
        let (ether_type, headers) = rest.split_at_checked(2)?;
        let mut plan = Self {
            next: 0,
            len: frame.len() as u64,
            macs: [0; 3],
            ether_type: u16::from_ne_bytes(ether_type.try_into().ok()?),
            reserved: 0,
            headers: [0; HEADER_WORDS],
            flow_mask: 0,
            stride: 1,
            client: 0,
            first_reply: 0,
            ahead: 0,
        };
        copy_words(macs, &mut plan.macs);
        copy_words(headers, &mut plan.headers);
        Some(plan)
    }
}

/// As far as both reach.
#[cfg(feature = "user")]
fn copy_words(from: &[u8], to: &mut [u32]) {
    let (words, _) = from.as_chunks();
    to.iter_mut().zip(words).for_each(|(to, word)| *to = u32::from_ne_bytes(*word));
}

/// The words of an IPv6 and a TCP header.
pub const HEADER_WORDS: usize = 15;
/// Bytes of the frames: Ethernet, IP, TCP, and a little behind them.
pub const LEN_V4: u32 = 64;
pub const LEN_V6: u32 = 80;

const _: () = assert!(size_of::<Plan>() == 112);

/// Client ports for each client address, from [`FIRST_PORT`] on.
pub const PORTS: u32 = 1 << 14;
pub const FIRST_PORT: u16 = 1024;

/// An entry of `REPLIES`: what a backend sends for a flow of `nat`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    /// The last word of the backend's address, as it lies in a header.
    pub backend: u32,
    pub dst_port_be: u16,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Reply>() == 8);

/// Places in `REPLIES`.
pub const MAX_REPLIES: u32 = 1 << 18;

#[cfg(feature = "user")]
mod pod {
    // SAFETY: integers only, without padding: the sizes are asserted above.
    unsafe impl aya::Pod for super::Plan {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Reply {}
}

/// The names in the object.
pub mod name {
    /// Wrappers: what clients send, and what backends answer.
    pub const FROM_CLIENTS_V4: &str = "from_clients_v4";
    pub const FROM_CLIENTS_V6: &str = "from_clients_v6";
    pub const FROM_BACKENDS_V4: &str = "from_backends_v4";
    pub const FROM_BACKENDS_V6: &str = "from_backends_v6";
    pub const WRAPPERS: [&str; 4] = [FROM_CLIENTS_V4, FROM_CLIENTS_V6, FROM_BACKENDS_V4, FROM_BACKENDS_V6];
    /// Floods: see tests/src/deluge.rs.
    pub const FLOOD_V4: &str = "flood_v4";
    pub const FLOOD_V6: &str = "flood_v6";
    /// Targets: see lb-ebpf/src/bin/bench.rs.
    pub const NULL: &str = "null";
    pub const PUSH: &str = "push";
    pub const PUSH_THRICE: &str = "push_thrice";
    pub const FLOOR_V4: &str = "floor_v4";
    pub const FLOOR_V6: &str = "floor_v6";
    /// Of `bench forward`.
    pub const REDIRECT: &str = "redirect";
    pub const REDIRECT_FLOOR_V4: &str = "redirect_floor_v4";
    pub const REDIRECT_FLOOR_V6: &str = "redirect_floor_v6";
    pub const SINK: &str = "sink";
    /// Maps.
    pub const PLAN: &str = "PLAN";
    pub const REPLIES: &str = "REPLIES";
    pub const TARGET: &str = "TARGET";
    pub const ARRIVED: &str = "ARRIVED";
    /// A constant that is set before loading.
    pub const REDIRECT_TO: &str = "REDIRECT_TO";
}
