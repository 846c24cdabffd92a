//! Frames by BPF_F_TEST_XDP_LIVE_FRAMES: an XDP program is run over and over, and what it returns
//! is done, millions of times a second.

use std::{io, os::fd::AsRawFd, os::fd::BorrowedFd};

/// `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const BATCH: u32 = 64;

/// Runs `program` `count` times on buffers that begin as `frame`, as if they came in at `ifindex`
/// of this thread's namespace: XDP_TX sends them out there. A buffer is used again as the program,
/// and whoever got it, left it. An interrupted run is an error.
pub fn run(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8], count: u32) -> io::Result<()> {
    let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let context = Context { data_end: len, ingress_ifindex: ifindex, ..Context::default() };
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: len,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        ctx_size_in: size_of::<Context>() as u32,
        ctx_in: (&raw const context) as u64,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads `frame` and `context`, which live until it returns, and writes to
    // `attr` alone: there is no room for output.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
