//! The only pointer arithmetic: checked views of headers in the directly reachable part of a
//! packet.

use core::marker::PhantomData;

/// Where a packet comes from: XDP, TC, or a test.
pub trait Frame {
    /// At TC checksums may be partial, lengths those of a GRO super-packet, and resets can't be
    /// sent.
    const AT_TC: bool;

    /// Address of the first byte.
    fn start(&self) -> usize;
    /// Address behind the last byte that can be reached directly.
    fn end(&self) -> usize;
    /// Bytes from the Ethernet header on, with those that cannot be reached directly.
    fn whole_len(&self) -> usize;

    /// Bytes that can be reached directly.
    #[inline(always)]
    fn reachable(&self) -> usize {
        self.end().wrapping_sub(self.start())
    }
}

/// A header of type `T` that lies whole in the packet. Fields are named by their offset, which is
/// checked at compile time, and come as they lie in memory: network order.
pub struct Header<T>(*mut u8, PhantomData<T>);

/// No header of a packet that Weir serves begins farther in; a mask as well, so all of its bits are
/// ones.
const MAX_OFFSET: usize = 0xfff;

/// The `T` at `offset`, if the packet reaches that far.
#[inline(always)]
pub fn header<T, F: Frame>(frame: &F, offset: usize) -> Option<Header<T>> {
    if offset > MAX_OFFSET {
        return None;
    }
    let at = frame.start().wrapping_add(bounded(offset));
    if at.wrapping_add(size_of::<T>()) > frame.end() {
        return None;
    }
    Some(Header(at as *mut u8, PhantomData))
}

/// An offset that is at most [`MAX_OFFSET`], in a register of which the verifier knows that,
/// whatever the register allocator does with it.
///
/// A comparison is not enough: LLVM may spill the offset before it, compare one register and add
/// another that it filled from the stack, and verifiers before Linux 6.9 do not carry the bound
/// from one to the other ("math between pkt pointer and register with unbounded min value"). What
/// comes out of the mask is a value of its own, bounded from its first instruction on, and a
/// bounded scalar keeps its bound through a spill.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn bounded(offset: usize) -> usize {
    // A constant needs no register.
    if core::intrinsics::is_val_statically_known(offset) {
        return offset;
    }
    let mut masked = offset;
    // SAFETY: one instruction that changes only the register it is given.
    unsafe {
        core::arch::asm!(
            "{0} &= {1}",
            inout(reg) masked,
            const MAX_OFFSET,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    masked
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn bounded(offset: usize) -> usize {
    offset
}

impl<T> Header<T> {
    #[inline(always)]
    pub fn u8<const AT: usize>(&self) -> u8 {
        self.load::<u8, AT>()
    }

    #[inline(always)]
    pub fn u16<const AT: usize>(&self) -> u16 {
        self.load::<u16, AT>()
    }

    #[inline(always)]
    pub fn u32<const AT: usize>(&self) -> u32 {
        self.load::<u32, AT>()
    }

    /// Four words: an IPv6 address.
    #[inline(always)]
    pub fn words<const AT: usize>(&self) -> [u32; 4] {
        self.load::<[u32; 4], AT>()
    }

    #[inline(always)]
    pub fn bytes<const N: usize, const AT: usize>(&self) -> [u8; N] {
        self.load::<[u8; N], AT>()
    }

    /// The one's complement sum of the whole header, whose size is a multiple of four (see
    /// `lb_common::checksum`).
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        const { assert!(size_of::<T>().is_multiple_of(4)) };
        (0..size_of::<T>()).step_by(4).fold(0, |sum: u64, at| {
            // SAFETY: as in `set`: `at` stays inside T.
            sum.wrapping_add(unsafe { read::<u32>(self.0.wrapping_add(at)) } as u64)
        })
    }

    #[inline(always)]
    pub fn set<V: Field, const AT: usize>(&self, value: V) {
        const { assert!(AT + size_of::<V>() <= size_of::<T>()) };
        // SAFETY: `header` saw the whole T inside the packet, and the assertion that this field is
        // inside T. The packet gives no alignment; BPF machines with Weir's other needs (x86-64,
        // arm64) have none to give.
        unsafe { write(self.0.wrapping_add(AT), value) }
    }

    #[inline(always)]
    fn load<V: Field, const AT: usize>(&self) -> V {
        const { assert!(AT + size_of::<V>() <= size_of::<T>()) };
        // SAFETY: as in `set`.
        unsafe { read(self.0.wrapping_add(AT)) }
    }
}

/// What a header is made of: any bits will do.
pub trait Field: Copy {}
impl Field for u8 {}
impl Field for u16 {}
impl Field for u32 {}
impl<const N: usize> Field for [u32; N] {}
impl<const N: usize> Field for [u8; N] {}

/// # Safety
/// `at` must point at `size_of::<V>()` readable bytes.
#[inline(always)]
unsafe fn read<V: Field>(at: *const u8) -> V {
    // `read_unaligned` becomes single bytes on the BPF target.
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    return unsafe { *at.cast::<V>() };
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    return unsafe { at.cast::<V>().read_unaligned() };
}

/// # Safety
/// `at` must point at `size_of::<V>()` writable bytes.
#[inline(always)]
unsafe fn write<V: Field>(at: *mut u8, value: V) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        *at.cast::<V>() = value;
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        at.cast::<V>().write_unaligned(value);
    }
}
