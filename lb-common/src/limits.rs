//! The sizes of the maps, and the names under which they are found.

/// Slots in the ring arena (8 bytes each): 256 rings of the default size; the default.
pub const RING_ARENA_SLOTS: u32 = 1 << 22;
/// Backends of all services together; index 0 is `reject`; the default.
pub const MAX_BACKENDS: u32 = 1 << 14;
/// VIP:port entries, for each family; the default.
pub const MAX_VIP_PORTS: u32 = 1 << 14;
/// Addresses that the program knows, for each family: VIPs, SNAT addresses, backends that keep the
/// client's address; the default.
pub const MAX_ADDRESSES: u32 = 1 << 15;
/// SNAT addresses of both families together.
pub const MAX_SNAT_ADDRESSES: u32 = 256;
/// Entries of `NAT_ESTABLISHED_*`, two for each flow.
pub const MAX_NAT_ESTABLISHED: u32 = 1 << 18;
/// Entries of `NAT_HALF_OPEN_*`, two for each flow.
pub const MAX_NAT_HALF_OPEN: u32 = 1 << 17;
/// Entries of `ESTABLISHED_*`: confirmed exceptions of DSR services; the default.
pub const MAX_ESTABLISHED: u32 = 1 << 17;
/// Entries of `HALF_OPEN_*`; the default.
pub const MAX_HALF_OPEN: u32 = 1 << 17;
/// Entries of `SEEN_*`; the default. No more than `ESTABLISHED_*` has: what is seen is to become
/// established.
pub const MAX_SEEN: u32 = 1 << 17;
/// Words of `SYNS`; a power of two. 1 MiB stays in a core's cache.
pub const SYNS_LEN: u32 = 1 << 17;
/// Entries of `REFUSALS`: VIPs times the reasons that occur at them; the default.
pub const MAX_REFUSALS: u32 = 1 << 13;
/// Prefixes of `PEERS_*`, for each family.
pub const MAX_PEERS: u32 = 1 << 12;
/// Bytes of the ring buffer `TRACE`.
pub const TRACE_BYTES: u32 = 1 << 18;
/// Interfaces that the counters keep apart; an interface counts under its index modulo this.
pub const MAX_INTERFACES: u32 = 256;

/// Bit of the values of `WAYS_OUT`: XDP may redirect there.
pub const WAY_OUT_REDIRECT: u32 = 1;
/// Bit of the values of `WAYS_OUT`: `XDP_TX` fails there. A veth drops it unless its other end runs
/// a program, and takes a redirect also where that has GRO.
pub const WAY_OUT_NO_TX: u32 = 2;

/// The names of the maps as bpftool and the pin directory show them.
pub mod map {
    pub const SETTINGS: &str = "SETTINGS";
    pub const ADDRESS_FILTER: &str = "ADDRESS_FILTER";
    pub const ADDRESSES_V4: &str = "ADDRESSES_V4";
    pub const ADDRESSES_V6: &str = "ADDRESSES_V6";
    pub const SERVICES_V4: &str = "SERVICES_V4";
    pub const SERVICES_V6: &str = "SERVICES_V6";
    pub const SERVICES_EPOCH: &str = "SERVICES_EPOCH";
    pub const RINGS: &str = "RINGS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const SNAT_ADDRESSES: &str = "SNAT_ADDRESSES";
    pub const SNAT_CURSORS: &str = "SNAT_CURSORS";
    pub const NAT_ESTABLISHED_V4: &str = "NAT_ESTABLISHED_V4";
    pub const NAT_ESTABLISHED_V6: &str = "NAT_ESTABLISHED_V6";
    pub const NAT_HALF_OPEN_V4: &str = "NAT_HALF_OPEN_V4";
    pub const NAT_HALF_OPEN_V6: &str = "NAT_HALF_OPEN_V6";
    pub const ESTABLISHED_V4: &str = "ESTABLISHED_V4";
    pub const ESTABLISHED_V6: &str = "ESTABLISHED_V6";
    pub const HALF_OPEN_V4: &str = "HALF_OPEN_V4";
    pub const HALF_OPEN_V6: &str = "HALF_OPEN_V6";
    pub const SEEN_V4: &str = "SEEN_V4";
    pub const SEEN_V6: &str = "SEEN_V6";
    pub const SYNS: &str = "SYNS";
    pub const SLOT_TIMES: &str = "SLOT_TIMES";
    pub const PEERS_V4: &str = "PEERS_V4";
    pub const PEERS_V6: &str = "PEERS_V6";
    pub const REFUSALS: &str = "REFUSALS";
    pub const TRACE: &str = "TRACE";
    pub const TRACE_FILTER: &str = "TRACE_FILTER";
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    pub const VERDICTS: &str = "VERDICTS";
    pub const WAYS_OUT: &str = "WAYS_OUT";
    /// Not pinned: a memory of the programs alone.
    pub const HOPS: &str = "HOPS";

    /// Every map that is pinned, so that the data path outlives the agent.
    pub const PINNED: [&str; 32] = [
        SETTINGS,
        ADDRESS_FILTER,
        ADDRESSES_V4,
        ADDRESSES_V6,
        SERVICES_V4,
        SERVICES_V6,
        SERVICES_EPOCH,
        RINGS,
        BACKENDS,
        SNAT_ADDRESSES,
        SNAT_CURSORS,
        NAT_ESTABLISHED_V4,
        NAT_ESTABLISHED_V6,
        NAT_HALF_OPEN_V4,
        NAT_HALF_OPEN_V6,
        ESTABLISHED_V4,
        ESTABLISHED_V6,
        HALF_OPEN_V4,
        HALF_OPEN_V6,
        SEEN_V4,
        SEEN_V6,
        SYNS,
        SLOT_TIMES,
        PEERS_V4,
        PEERS_V6,
        REFUSALS,
        TRACE,
        TRACE_FILTER,
        SERVICE_STATS,
        BACKEND_STATS,
        VERDICTS,
        WAYS_OUT,
    ];
}

/// The names of the programs in the object.
pub mod program {
    /// XDP, on every interface of the configuration.
    pub const XDP: &str = "weir_xdp";
    /// TC ingress: forwards what XDP could not.
    pub const INGRESS: &str = "weir_ingress";
    /// TC egress: gives replies of backends on this node, or behind it, the VIP's address again.
    pub const EGRESS: &str = "weir_egress";
}
