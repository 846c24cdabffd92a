//! Headers that are whole, cut short, contradictory or random.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::{flow::Flow, verdict::Reason};
use proptest::prelude::*;

use super::bytes::{Bytes, SkbBytes, v4_segment, v6_segment};
use crate::{
    packet::{Frame, header},
    parse::{self, ETHER_IPV4, ETHER_IPV6, L3, PROTOCOL_TCP, Tcp, Transport},
};

fn v4() -> Vec<u8> {
    v4_segment(&Flow { src: 1, dst: 2, src_port_be: 3, dst_port_be: 4 }, 64, b"data")
}

fn v6() -> Vec<u8> {
    v6_segment(&Flow { src: [1; 4], dst: [2; 4], src_port_be: 3, dst_port_be: 4 }, 64, b"data")
}

#[test]
fn header_is_there_only_if_the_packet_holds_all_of_it() {
    let frame = Bytes::reaching(&[7; 40], 30);
    for offset in 0..64 {
        assert_eq!(header::<[u8; 10], _>(&frame, offset).is_some(), offset <= 20, "offset {offset}");
    }
    for offset in [4097, usize::MAX, usize::MAX - 9, usize::MAX / 2] {
        assert!(header::<[u8; 10], _>(&frame, offset).is_none(), "offset {offset}");
    }
    assert_eq!((frame.reachable(), frame.whole_len()), (30, 40));
}

#[test]
fn fields_come_as_they_lie_in_memory_at_any_alignment() {
    let frame = Bytes::new(&(0..40).collect::<Vec<u8>>());
    for offset in 0..8_usize {
        let word = header::<[u8; 8], _>(&frame, offset).unwrap();
        let at = offset as u8;
        assert_eq!(word.u8::<2>(), at + 2);
        assert_eq!(word.u16::<2>().to_ne_bytes(), [at + 2, at + 3]);
        assert_eq!(word.u32::<4>().to_ne_bytes(), [at + 4, at + 5, at + 6, at + 7]);
        assert_eq!(word.bytes::<3, 1>(), [at + 1, at + 2, at + 3]);
    }
    header::<[u8; 8], _>(&frame, 3).unwrap().set::<u16, 4>(u16::from_ne_bytes([0xaa, 0xbb]));
    let mut wanted: Vec<u8> = (0..40).collect();
    wanted[7..9].copy_from_slice(&[0xaa, 0xbb]);
    assert_eq!(frame.to_vec(), wanted);
}

#[test]
fn link_looks_through_two_tags_and_no_more() {
    let frame = |types: &[u16]| {
        let mut frame = vec![0; 12];
        for (number, kind) in types.iter().enumerate() {
            if number > 0 {
                frame.extend([0, 5]);
            }
            frame.extend(kind.to_be_bytes());
        }
        frame
    };
    for (types, wanted) in [
        ([0x0800].as_slice(), (ETHER_IPV4, 14, false)),
        (&[0x86dd], (ETHER_IPV6, 14, false)),
        (&[0x8100, 0x0800], (ETHER_IPV4, 18, true)),
        (&[0x88a8, 0x8100, 0x86dd], (ETHER_IPV6, 22, true)),
        (&[0x8100, 0x8100, 0x8100, 0x0800], (0x8100_u16.to_be(), 22, true)),
    ] {
        let bytes = frame(types);
        let link = parse::link(&Bytes::new(&bytes)).unwrap();
        assert_eq!((link.ether_type_be, link.l3, link.tagged), wanted, "{types:x?}");
        let needed = 14 + 4 * (types.len() - 1).min(2);
        for len in 0..bytes.len() {
            assert_eq!(parse::link(&Bytes::new(&bytes[..len])).is_some(), len >= needed, "{types:x?}, {len} bytes");
        }
    }
}

#[test]
fn packet_that_is_cut_short_is_malformed_at_every_length() {
    let (v4, v6) = (v4(), v6());
    for len in 0..v4.len() {
        assert_eq!(parse::ipv4(&Bytes::new(&v4[..len]), L3), Err(Reason::Malformed), "{len} bytes");
    }
    for len in 0..v6.len() {
        assert_eq!(parse::ipv6(&Bytes::new(&v6[..len]), L3), Err(Reason::Malformed), "{len} bytes");
    }
    let whole = |offset, end| Ok(Transport { offset, protocol: PROTOCOL_TCP, end });
    assert_eq!(parse::ipv4(&Bytes::new(&v4), L3), whole(34, v4.len()));
    assert_eq!(parse::ipv6(&Bytes::new(&v6), L3), whole(54, v6.len()));
    // What cannot be reached directly is there all the same.
    assert_eq!(parse::ipv4(&Bytes::reaching(&v4, 60), L3), whole(34, v4.len()));
    assert_eq!(parse::ipv6(&Bytes::reaching(&v6, 80), L3), whole(54, v6.len()));
}

#[test]
fn length_of_zero_is_that_of_a_big_packet_at_tc_alone() {
    let (mut v4, mut v6) = (v4(), v6());
    v4[16..18].fill(0);
    v6[18..20].fill(0);
    let (v4_len, v6_len) = (v4.len(), v6.len());
    assert_eq!(parse::ipv4(&Bytes::new(&v4), L3), Err(Reason::Malformed));
    assert_eq!(parse::ipv4(&SkbBytes(Bytes::new(&v4)), L3).map(|transport| transport.end), Ok(v4_len));
    assert_eq!(parse::ipv6(&SkbBytes(Bytes::new(&v6)), L3).map(|transport| transport.end), Ok(v6_len));
}

/// The timestamp that is found in these options.
fn timestamp(options: &[u8]) -> u32 {
    let frame = Bytes::new(&[&[0; 20], options].concat());
    let tcp = Tcp {
        flags: 0,
        sequence: 0,
        acknowledgement: 0,
        offset: 0,
        header_len: frame.whole_len(),
        payload: 0,
        timestamp: 0,
    };
    parse::tcp_timestamp(&frame, &tcp)
}

#[test]
fn timestamp_is_found_among_options() {
    const STAMP: [u8; 10] = [8, 10, 0, 0, 1, 2, 9, 9, 9, 9];
    let before = |options: &[u8]| [options, &STAMP].concat();
    for (name, options, wanted) in [
        ("alone", before(&[]), 0x0102),
        ("as Linux sends it in a SYN", before(&[2, 4, 5, 0xb4, 4, 2]), 0x0102),
        ("as Linux sends it later", before(&[1, 1]), 0x0102),
        ("after SACK", before(&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2]), 0x0102),
        ("behind the end of options", before(&[0]), 0),
        ("behind an option of no length", before(&[30, 0]), 0),
        ("behind an option of length one", before(&[30, 1]), 0),
        ("behind an option that is too long", before(&[30, 200]), 0),
        ("cut short", STAMP[..9].to_vec(), 0),
        ("none", Vec::new(), 0),
    ] {
        assert_eq!(timestamp(&options), wanted, "{name}");
    }
}

proptest! {
    /// Whatever comes in: what is taken for TCP lies where an independent library finds TCP.
    #[test]
    fn transport_lies_where_etherparse_finds_it(
        is_v4: bool,
        changes in proptest::collection::vec((14..80_usize, any::<u8>()), 0..4),
        len in 0..200_usize,
    ) {
        let mut frame = if is_v4 { v4() } else { v6() };
        for (at, byte) in changes {
            if let Some(to) = frame.get_mut(at) {
                *to = byte;
            }
        }
        frame.truncate(len);
        // A length of 0 is that of a jumbogram to etherparse, which then takes all that is there;
        // to us it is 0.
        if !is_v4 && frame.get(L3 + 4..L3 + 6) == Some(&[0, 0]) {
            return Ok(());
        }
        let found = if is_v4 { parse::ipv4(&Bytes::new(&frame), L3) } else { parse::ipv6(&Bytes::new(&frame), L3) };
        let Ok(sliced) = SlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return Ok(()) };
        let at = tcp.slice().as_ptr().addr() - frame.as_ptr().addr();
        let payload = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => ip.payload().payload,
            NetSlice::Ipv6(ip) => ip.payload().payload,
            _ => return Ok(()),
        };
        let end = payload.as_ptr().addr() + payload.len() - frame.as_ptr().addr();
        // We refuse more than etherparse does (fragments, a routing header that is not done), but
        // what we take is the same.
        if let Ok(transport) = found {
            prop_assert_eq!(transport, Transport { offset: at, protocol: PROTOCOL_TCP, end });
        }
    }

    /// No bytes at all lead beyond the packet.
    #[test]
    fn random_bytes_are_read_within_their_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..160), is_v4: bool) {
        let frame = Bytes::new(&bytes);
        let found = if is_v4 { parse::ipv4(&frame, L3) } else { parse::ipv6(&frame, L3) };
        if let Ok(transport) = found {
            prop_assert!(transport.end <= bytes.len(), "{:?} of {} bytes", transport, bytes.len());
            prop_assert!(transport.offset <= transport.end, "{:?}", transport);
        }
        timestamp(&bytes);
    }
}
