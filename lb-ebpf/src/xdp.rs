//! A packet at XDP.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

use crate::packet::Frame;

pub struct XdpFrame(pub XdpContext);

impl XdpFrame {
    /// Moves the first byte; negative makes room. Views of headers made before are void.
    #[inline(always)]
    pub fn adjust_head(&self, bytes: i32) -> Option<()> {
        // SAFETY: the context is this program's.
        (unsafe { bpf_xdp_adjust_head(self.0.as_ptr().cast(), bytes) } == 0).then_some(())
    }
}

impl Frame for XdpFrame {
    const AT_TC: bool = false;

    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the context is this program's. Read each time anew: a copy that the compiler
        // keeps loses what the verifier knows of it.
        unsafe { (&raw const (*self.0.ctx).data).read_volatile() as usize }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.ctx).data_end).read_volatile() as usize }
    }

    #[inline(always)]
    fn whole_len(&self) -> usize {
        // SAFETY: the context is this program's.
        unsafe { bpf_xdp_get_buff_len(self.0.as_ptr().cast()) as usize }
    }
}

impl EbpfContext for XdpFrame {
    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.as_ptr()
    }
}
