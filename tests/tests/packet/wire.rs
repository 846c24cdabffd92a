//! Frames on a real interface, with what the kernel knows of them beside their bytes: partial
//! checksums, segments still to be cut.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::{
        socket::{SockFlag, SockType, setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    },
};

/// A raw socket on one interface of this thread's namespace.
pub struct Wire(File);

/// `struct virtio_net_hdr`, in front of every frame that is sent.
#[derive(Clone, Copy, Default)]
pub struct Offload {
    /// Where the data begins whose checksum is still to be made, and where the checksum lies in it.
    pub checksum: Option<(u16, u16)>,
    /// IPv4 or not, and the bytes of data in a segment.
    pub segments: Option<(bool, u16)>,
}

const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;

impl Wire {
    /// What is sent has an [`Offload`] in front.
    pub fn sender(interface: &str) -> Self {
        let wire = Self::open(interface);
        let on: libc::c_int = 1;
        // SAFETY: the option is an int, and its length is that of one.
        let set = unsafe {
            libc::setsockopt(
                wire.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0, "PACKET_VNET_HDR on {interface}: {}", io::Error::last_os_error());
        wire
    }

    pub fn receiver(interface: &str) -> Self {
        let wire = Self::open(interface);
        setsockopt(&wire.0, ReceiveTimeout, &TimeVal::seconds(5)).unwrap();
        wire
    }

    fn open(interface: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a system call with integers; the descriptor is nobody else's.
        let fd = unsafe {
            let kind = SockType::Raw as libc::c_int | SockFlag::SOCK_CLOEXEC.bits();
            let fd = libc::socket(libc::AF_PACKET, kind, all.into());
            assert!(fd >= 0, "a raw socket: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: integers and byte arrays, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = if_nametoindex(interface).unwrap() as i32;
        // SAFETY: the address is a `sockaddr_ll`, and its length is that of one.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        };
        assert_eq!(bound, 0, "bind to {interface}: {}", io::Error::last_os_error());
        Self(File::from(fd))
    }

    pub fn send(&mut self, offload: Offload, header_len: u16, frame: &[u8]) {
        let (flags, (start, offset)) = match offload.checksum {
            Some(place) => (VIRTIO_NET_HDR_F_NEEDS_CSUM, place),
            None => (0, (0, 0)),
        };
        let (kind, size) = match offload.segments {
            Some((true, size)) => (VIRTIO_NET_HDR_GSO_TCPV4, size),
            Some((false, size)) => (VIRTIO_NET_HDR_GSO_TCPV6, size),
            None => (0, 0),
        };
        let mut packet = vec![flags, kind];
        for word in [header_len, size, start, offset] {
            packet.extend(word.to_ne_bytes());
        }
        packet.extend_from_slice(frame);
        let sent = self.0.write(&packet).unwrap();
        assert_eq!(sent, packet.len());
    }

    /// The next frame that `is_wanted`; others (neighbour discovery) are passed over.
    pub fn receive(&mut self, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut room = vec![0; 1 << 17];
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            let len = self.0.read(&mut room).unwrap_or_else(|error| panic!("no frame came: {error}"));
            if is_wanted(&room[..len]) {
                return room[..len].to_vec();
            }
        }
        panic!("only other frames came");
    }
}
