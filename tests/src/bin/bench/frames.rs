//! The frames, by etherparse.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};
use lb_common::bench::{LEN_V4, LEN_V6};

use crate::{
    cases::Kind,
    network::{MAC, ROUTER_MAC},
};

/// A TCP segment of the length that every frame of its family has.
pub fn segment(kind: Kind, src: SocketAddr, dst: SocketAddr) -> Result<Vec<u8>> {
    let mut tcp = TcpHeader::new(src.port(), dst.port(), 0, 64_240);
    tcp.syn = kind == Kind::Syn;
    tcp.ack = !tcp.syn;
    build(tcp, src.ip(), dst.ip())
}

/// A segment with these flags and acknowledgement.
pub fn build(tcp: TcpHeader, src: IpAddr, dst: IpAddr) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(ROUTER_MAC, MAC);
    let (builder, len) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (ethernet.ipv4(src.octets(), dst.octets(), 64), LEN_V4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (ethernet.ipv6(src.octets(), dst.octets(), 64), LEN_V6),
        _ => anyhow::bail!("{src} and {dst} are of different families"),
    };
    let syn = tcp.syn;
    let builder = builder.tcp_header(tcp);
    // A SYN has no data, but its frame is filled up.
    let payload = vec![0; if syn { 0 } else { len as usize - builder.size(0) }];
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).context("can't make a frame")?;
    frame.resize(len as usize, 0);
    Ok(frame)
}

/// Ends and TCP header of a frame.
pub fn parse(frame: &[u8]) -> Result<(IpAddr, IpAddr, TcpHeader)> {
    let headers = PacketHeaders::from_ethernet_slice(frame).context("not a frame")?;
    let (src, dst) = match headers.net.context("no IP header")? {
        NetHeaders::Ipv4(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        NetHeaders::Ipv6(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        NetHeaders::Arp(_) => anyhow::bail!("an ARP packet"),
    };
    match headers.transport.context("no TCP header")? {
        TransportHeader::Tcp(tcp) => Ok((src, dst, tcp)),
        other => anyhow::bail!("not TCP but {other:?}"),
    }
}
