//! A packet in plain memory.

use std::cell::Cell;

use etherparse::{PacketBuilder, TcpOptionElement};
use lb_common::flow::Flow;

use crate::packet::Frame;

/// A frame; its last bytes may be out of direct reach, as in a packet of several buffers. Cells,
/// because headers write through what they point at.
pub struct Bytes {
    cells: Box<[Cell<u8>]>,
    reachable: usize,
}

impl Bytes {
    pub fn new(bytes: &[u8]) -> Self {
        Self::reaching(bytes, bytes.len())
    }

    pub fn reaching(bytes: &[u8], reachable: usize) -> Self {
        Self { cells: bytes.iter().copied().map(Cell::new).collect(), reachable }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.cells.iter().map(Cell::get).collect()
    }
}

impl Frame for Bytes {
    const AT_TC: bool = false;

    fn start(&self) -> usize {
        self.cells.as_ptr().expose_provenance()
    }

    fn end(&self) -> usize {
        self.start() + self.reachable
    }

    fn whole_len(&self) -> usize {
        self.cells.len()
    }
}

/// The same at TC, where a length of zero is that of a packet above 64 KiB.
pub struct SkbBytes(pub Bytes);

impl Frame for SkbBytes {
    const AT_TC: bool = true;

    fn start(&self) -> usize {
        self.0.start()
    }

    fn end(&self) -> usize {
        self.0.end()
    }

    fn whole_len(&self) -> usize {
        self.0.whole_len()
    }
}

/// A TCP segment by etherparse, with a timestamp option.
pub fn v4_segment(flow: &Flow<u32>, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (flow.src.to_ne_bytes(), flow.dst.to_ne_bytes());
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, ttl);
    let tcp = builder.tcp(u16::from_be(flow.src_port_be), u16::from_be(flow.dst_port_be), 1000, 512).ack(7);
    let tcp = tcp.options(&[TcpOptionElement::Timestamp(77, 88)]).unwrap();
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

/// The same for IPv6.
pub fn v6_segment(flow: &Flow<[u32; 4]>, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |words: [u32; 4]| {
        let mut octets = [0; 16];
        for (to, word) in octets.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    };
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(octets(flow.src), octets(flow.dst), ttl);
    let tcp = builder.tcp(u16::from_be(flow.src_port_be), u16::from_be(flow.dst_port_be), 1000, 512).ack(7);
    let tcp = tcp.options(&[TcpOptionElement::Timestamp(77, 88)]).unwrap();
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}
