//! The maps, and their counters' arithmetic. docs/architecture.md has the table of who writes what.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    macros::btf_map,
};
use lb_common::{
    backend::Backend,
    exception::Exception,
    filter::{self, FILTER_SHIFT, FILTER_WORDS},
    flow::{Addr, AnyAddr, Flow, V4Addr, V6Addr},
    limits::{
        MAX_ADDRESSES, MAX_BACKENDS, MAX_ESTABLISHED, MAX_HALF_OPEN, MAX_INTERFACES, MAX_NAT_ESTABLISHED,
        MAX_NAT_HALF_OPEN, MAX_PEERS, MAX_REFUSALS, MAX_SEEN, MAX_SNAT_ADDRESSES, MAX_VIP_PORTS, RING_ARENA_SLOTS,
        SYNS_LEN, TRACE_BYTES,
    },
    nat::NatEntry,
    service::{Refusal, Service, Stats, VipKey},
    settings::Settings,
    slot::Slot,
    syn::Syn,
    trace::{TraceEvent, TraceFilter},
    verdict::{Kind, Reason, VERDICTS_LEN, verdict_index},
};

use crate::atomic;

/// Every VIP:port of both families has its counters.
const MAX_SERVICE_STATS: usize = 2 * MAX_VIP_PORTS as usize;

/// Entries are allocated as they are made: a table takes what its entries take.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

pub type Table<K, V, const N: usize> = HashMap<K, V, N>;
pub type NatEstablished<A> = HashMap<Flow<A>, NatEntry<A>, { MAX_NAT_ESTABLISHED as usize }, NO_PREALLOC>;
pub type Established<A> = HashMap<Flow<A>, Exception, { MAX_ESTABLISHED as usize }, NO_PREALLOC>;
pub type HalfOpen<A> = LruHashMap<Flow<A>, Exception, { MAX_HALF_OPEN as usize }>;
pub type Seen<A> = LruHashMap<Flow<A>, Exception, { MAX_SEEN as usize }>;
pub type Peers<A> = LpmTrie<A, u32, { MAX_PEERS as usize }, NO_PREALLOC>;
pub type NatHalfOpen<A> = LruHashMap<Flow<A>, NatEntry<A>, { MAX_NAT_HALF_OPEN as usize }>;

/// One entry: what the agent tells the programs as a whole.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// What places an address in `ADDRESS_FILTER`: the agent sets it before it loads the programs, by
/// the size of the map, and to the verifier it is a constant.
#[unsafe(no_mangle)]
static ADDRESS_FILTER_SHIFT: u32 = FILTER_SHIFT;

/// A filter before `ADDRESSES_*`: see `lb_common::filter`.
#[btf_map]
pub static ADDRESS_FILTER: Array<u64, { FILTER_WORDS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Address → bits of `lb_common::service::address`.
#[btf_map]
pub static ADDRESSES_V4: Table<V4Addr, u32, { MAX_ADDRESSES as usize }> = HashMap::new();
#[btf_map]
pub static ADDRESSES_V6: Table<V6Addr, u32, { MAX_ADDRESSES as usize }> = HashMap::new();

/// VIP, port, protocol → service.
#[btf_map]
pub static SERVICES_V4: Table<VipKey<V4Addr>, Service, { MAX_VIP_PORTS as usize }> = HashMap::new();
#[btf_map]
pub static SERVICES_V6: Table<VipKey<V6Addr>, Service, { MAX_VIP_PORTS as usize }> = HashMap::new();

/// How often the agent has said that services may have changed, from 1 on: see [`crate::service`].
#[btf_map]
pub static SERVICES_EPOCH: Array<u64, 1> = Array::new();

/// The arena of slots; every service owns a range for each family.
#[btf_map]
pub static RINGS: Array<u64, { RING_ARENA_SLOTS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Index → backend; 0 is `reject`.
#[btf_map]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }> = Array::new();

/// The addresses that SNAT uses; a backend names a range of them.
#[btf_map]
pub static SNAT_ADDRESSES: Array<AnyAddr, { MAX_SNAT_ADDRESSES as usize }> = Array::new();

/// Backend index → how far its walk of the port pool has come.
#[btf_map]
pub static SNAT_CURSORS: Array<u64, { MAX_BACKENDS as usize }> = Array::new();

/// `nat` flows whose handshake is complete, both directions.
#[btf_map]
pub static NAT_ESTABLISHED_V4: NatEstablished<V4Addr> = HashMap::new();
#[btf_map]
pub static NAT_ESTABLISHED_V6: NatEstablished<V6Addr> = HashMap::new();

/// `nat` flows whose handshake is under way, both directions.
#[btf_map]
pub static NAT_HALF_OPEN_V4: NatHalfOpen<V4Addr> = LruHashMap::new();
#[btf_map]
pub static NAT_HALF_OPEN_V6: NatHalfOpen<V6Addr> = LruHashMap::new();

/// Confirmed exceptions of DSR services; refuses when full.
#[btf_map]
pub static ESTABLISHED_V4: Established<V4Addr> = HashMap::new();
#[btf_map]
pub static ESTABLISHED_V6: Established<V6Addr> = HashMap::new();

/// Exceptions of DSR services that no packet has confirmed yet.
#[btf_map]
pub static HALF_OPEN_V4: HalfOpen<V4Addr> = LruHashMap::new();
#[btf_map]
pub static HALF_OPEN_V6: HalfOpen<V6Addr> = LruHashMap::new();

/// Flows that were there before their slot changed, as they were seen since.
#[btf_map]
pub static SEEN_V4: Seen<V4Addr> = LruHashMap::new();
#[btf_map]
pub static SEEN_V6: Seen<V6Addr> = LruHashMap::new();

/// Fingerprints of recent SYNs: words of `lb_common::syn`.
#[btf_map]
pub static SYNS: Array<u64, { SYNS_LEN as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Half of a slot's index → when the owners of this slot (the lower half of the word) and of the
/// next one (the upper half) last agreed, in tenths of seconds of CLOCK_BOOTTIME; 0: not known.
/// Only the agent uses it, after its own restart.
#[btf_map]
pub static SLOT_TIMES: Array<u64, { (RING_ARENA_SLOTS / 2) as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Who may send this node encapsulated packets: prefixes.
#[btf_map]
pub static PEERS_V4: Peers<V4Addr> = LpmTrie::new();
#[btf_map]
pub static PEERS_V6: Peers<V6Addr> = LpmTrie::new();

/// Packets to a VIP and port that were not forwarded, by reason.
#[btf_map]
pub static REFUSALS: PerCpuHashMap<Refusal, u64, { MAX_REFUSALS as usize }> = PerCpuHashMap::new();

/// Decisions, told while somebody asks for them.
#[btf_map]
pub static TRACE: RingBuf<TraceEvent, { TRACE_BYTES as usize }> = RingBuf::new();

/// One entry: which decisions are told.
#[btf_map]
pub static TRACE_FILTER: Array<TraceFilter, 1> = Array::new();

/// Counters of each VIP and port.
#[btf_map]
pub static SERVICE_STATS: PerCpuArray<Stats, MAX_SERVICE_STATS> = PerCpuArray::new();

/// Counters of each backend.
#[btf_map]
pub static BACKEND_STATS: PerCpuArray<Stats, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// Counters of each verdict and event, for each interface: see `verdict_index`.
#[btf_map]
pub static VERDICTS: PerCpuArray<u64, { VERDICTS_LEN as usize }> = PerCpuArray::new();

/// How XDP may send through an interface: ifindex → `WAY_OUT_*`; one that is not in it takes only
/// `XDP_TX`.
#[btf_map]
pub static WAYS_OUT: Table<u32, u32, { MAX_INTERFACES as usize }> = HashMap::new();

/// Whether `ADDRESSES_*` may know an address: false is certain.
#[inline(always)]
pub fn may_be_known<A: Addr>(address: &A) -> bool {
    // SAFETY: an aligned word that nobody writes; volatile, for it is not what the compiler sees.
    let shift = unsafe { (&raw const ADDRESS_FILTER_SHIFT).read_volatile() };
    let (word, bit) = filter::place(address, shift);
    // SAFETY: an aligned word of a live array, read once.
    ADDRESS_FILTER.get_ptr(word).is_some_and(|word| unsafe { word.read_volatile() } & bit == 0)
}

/// The `WAY_OUT_*` bits of an interface.
#[inline(always)]
pub fn way_out(ifindex: u32) -> u32 {
    // SAFETY: the value is read at once; the agent replaces it as a whole.
    unsafe { WAYS_OUT.get(ifindex) }.map_or(0, |bits| *bits)
}

/// Counts a verdict on an interface.
#[inline(always)]
pub fn count(ifindex: u32, reason: Reason) {
    count_event(ifindex, reason as u32);
}

/// Counts an `EVENT_*` on an interface.
#[inline(always)]
pub fn count_event(ifindex: u32, place: u32) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict_index(ifindex, place)) {
        // SAFETY: a per-CPU value: nobody else writes it while this program runs.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Lets `change` add to the counters of a VIP and of a backend.
#[inline(always)]
pub fn count_stats(service: u32, backend: u32, change: impl Fn(&mut Stats)) {
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: as in `count_event`.
        change(unsafe { &mut *stats });
    }
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: as in `count_event`.
        change(unsafe { &mut *stats });
    }
}

/// Counts a packet to a VIP and port that was not forwarded. When REFUSALS is full it counts in
/// `VERDICTS` alone.
#[inline(never)]
pub fn count_refusal(service: u32, reason: Reason) {
    if matches!(reason.kind(), Kind::Reject | Kind::Drop)
        && let Some(stats) = SERVICE_STATS.get_ptr_mut(service)
    {
        // SAFETY: as in `count_event`.
        let stats = unsafe { &mut *stats };
        stats.refused = stats.refused.wrapping_add(1);
    }
    let key = Refusal { stats: service, reason: reason as u32 };
    match REFUSALS.get_ptr_mut(key) {
        // SAFETY: as in `count_event`.
        Some(counter) => unsafe { *counter = (*counter).wrapping_add(1) },
        None => {
            let _is_in = REFUSALS.insert(key, 1, 0).is_ok();
        }
    }
}

/// The slot at `index` of the arena.
#[inline(always)]
pub fn slot(index: u32) -> Option<Slot> {
    let word = RINGS.get_ptr(index)?;
    // SAFETY: an aligned word of a live array; the agent changes it at any time, so it is read
    // once.
    Some(Slot(unsafe { word.read_volatile() }))
}

/// Sets flags of the slot at `index`, whatever else it holds by now.
#[inline(always)]
pub fn mark_slot(index: u32, flags: u64) {
    if let Some(word) = RINGS.get_ptr_mut(index) {
        // SAFETY: an aligned word of a live array.
        unsafe { atomic::or64(word, flags) };
    }
}

/// The fingerprint at `place` of `SYNS`.
#[inline(always)]
pub fn syn(place: u32) -> Syn {
    // SAFETY: an aligned word of a live array that other CPUs write at any time: read once.
    Syn(SYNS.get_ptr(place).map_or(0, |word| unsafe { word.read_volatile() }))
}

/// Replaces the fingerprint at `place`; of two CPUs that do it at once one wins.
#[inline(always)]
pub fn set_syn(place: u32, syn: Syn) {
    if let Some(word) = SYNS.get_ptr_mut(place) {
        // SAFETY: as in `syn`.
        unsafe { word.write_volatile(syn.0) };
    }
}

/// The backend at `index`.
#[inline(always)]
pub fn backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index)
}

/// A flow table, whichever kind it is.
pub trait FlowTable<A, E> {
    fn find(&self, flow: &Flow<A>) -> Option<*mut E>;
    /// Inserts an entry if there is none; false if there is one, or no room.
    #[must_use]
    fn claim(&self, flow: &Flow<A>, entry: &E) -> bool;
    /// Inserts or replaces an entry; false if there is no room.
    #[must_use]
    fn put(&self, flow: &Flow<A>, entry: &E) -> bool;
    fn forget(&self, flow: &Flow<A>);
}

macro_rules! flow_table {
    ($table:ident) => {
        impl<A, E, const N: usize, const FLAGS: usize> FlowTable<A, E> for $table<Flow<A>, E, N, FLAGS> {
            #[inline(always)]
            fn find(&self, flow: &Flow<A>) -> Option<*mut E> {
                self.get_ptr_mut(flow)
            }

            #[inline(always)]
            fn claim(&self, flow: &Flow<A>, entry: &E) -> bool {
                self.insert(flow, entry, BPF_NOEXIST as u64).is_ok()
            }

            #[inline(always)]
            fn put(&self, flow: &Flow<A>, entry: &E) -> bool {
                self.insert(flow, entry, 0).is_ok()
            }

            #[inline(always)]
            fn forget(&self, flow: &Flow<A>) {
                // Already gone is as good.
                let _gone = self.remove(flow).is_ok();
            }
        }
    };
}

flow_table!(HashMap);
flow_table!(LruHashMap);
