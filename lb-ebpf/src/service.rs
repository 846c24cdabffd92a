//! The service of a VIP and port, remembered on each CPU: a look-up in a hash map is three calls of
//! functions, which cost more than all else that it does where the kernel guards returns (AMD
//! before Zen 5). What is remembered counts until the agent says that it has written a service. See
//! docs/adr/0005.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    flow::{Addr, V4Addr, V6Addr},
    service::{Service, VipKey},
};

use crate::{family::Family, maps};

/// What a CPU remembers of one VIP and port.
#[repr(C)]
pub struct Remembered<A> {
    vip: A,
    port_be: u16,
    reserved: u16,
    /// `SERVICES_EPOCH` as it was before the look-up; 0 in a place that is not used yet.
    epoch: u64,
    service: Service,
}

/// VIPs and ports that a CPU remembers at a time.
const PLACES: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 10;

#[btf_map]
pub static REMEMBERED_V4: PerCpuArray<Remembered<V4Addr>, { PLACES as usize }> = PerCpuArray::new();
#[btf_map]
pub static REMEMBERED_V6: PerCpuArray<Remembered<V6Addr>, { PLACES as usize }> = PerCpuArray::new();

/// The service of a VIP and TCP port.
#[inline(always)]
pub fn find<V: Family>(vip: &V::Addr, port_be: u16) -> Option<&'static Service> {
    // SAFETY: an aligned word of a live array, read once, and before the service is.
    let epoch = unsafe { maps::SERVICES_EPOCH.get_ptr(0)?.read_volatile() };
    // SAFETY: a per-CPU value: nobody else writes it while this program runs.
    let remembered = unsafe { &mut *V::remembered(place(vip, port_be))? };
    if remembered.epoch == epoch && remembered.port_be == port_be && remembered.vip == *vip && epoch != 0 {
        return Some(&remembered.service);
    }
    let service = V::service(&VipKey::tcp(vip.read(), port_be))?;
    // Nothing is remembered while this is written.
    remembered.epoch = 0;
    remembered.vip = vip.read();
    remembered.port_be = port_be;
    remembered.service = service.read();
    remembered.epoch = epoch;
    Some(service)
}

#[inline(always)]
fn place<A: Addr>(vip: &A, port_be: u16) -> u32 {
    vip.scatter().wrapping_add((port_be as u32).wrapping_mul(0x9e37_79b1)) >> (u32::BITS - PLACE_BITS)
}
