//! Opening the flows of `nat` through the program itself, both directions.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use etherparse::TcpHeader;
use lb_common::{
    bench::{FIRST_PORT, PORTS, Reply},
    flow::Family,
};

use crate::{frames, network::client, stage::Stage};

/// The client of flow `flow`, as the wrapper counts.
pub fn client_of(family: Family, first: u32, flow: u32) -> SocketAddr {
    SocketAddr::new(client(family, first + flow / PORTS), FIRST_PORT + (flow % PORTS) as u16)
}

/// SYN, SYN-ACK, ACK of every flow; returns what backends send for each.
pub fn open(stage: &Stage, family: Family, vip: SocketAddr, first: u32, flows: u32) -> Result<Vec<Reply>> {
    let open = |flow| {
        open_one(stage, client_of(family, first, flow), vip).with_context(|| format!("can't open nat flow {flow}"))
    };
    (0..flows).map(open).collect()
}

fn open_one(stage: &Stage, client: SocketAddr, vip: SocketAddr) -> Result<Reply> {
    let segment = |src: SocketAddr, dst: SocketAddr, numbers: (u32, u32), flags: (bool, bool)| {
        let mut tcp = TcpHeader::new(src.port(), dst.port(), numbers.0, 64_240);
        tcp.acknowledgment_number = numbers.1;
        (tcp.syn, tcp.ack) = flags;
        frames::build(tcp, src.ip(), dst.ip())
    };
    const CLIENTS: u32 = 1000;
    const BACKENDS: u32 = 5000;
    let sent = stage.show(&segment(client, vip, (CLIENTS, 0), (true, false))?)?;
    let (src, dst, tcp) = frames::parse(&sent)?;
    let (snat, backend) = (SocketAddr::new(src, tcp.source_port), SocketAddr::new(dst, tcp.destination_port));
    stage.show(&segment(backend, snat, (BACKENDS, CLIENTS + 1), (true, true))?)?;
    stage.show(&segment(client, vip, (CLIENTS + 1, BACKENDS + 1), (false, true))?)?;
    Ok(Reply { backend: last_word(backend.ip()), dst_port_be: snat.port().to_be(), reserved: 0 })
}

/// The last four bytes of an address as they lie in a header.
fn last_word(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
        IpAddr::V6(ip) => (ip.to_bits() as u32).to_be(),
    }
}
