//! Rewritten frames are those that an independent library makes of the new addresses.

use lb_common::flow::Flow;
use proptest::prelude::*;

use super::bytes::{Bytes, v4_segment, v6_segment};
use crate::{
    family::{V4, V6},
    rewrite,
};

fn v4_flow() -> impl Strategy<Value = Flow<u32>> {
    any::<(u32, u32, u16, u16)>().prop_map(|(src, dst, src_port_be, dst_port_be)| Flow {
        src,
        dst,
        src_port_be,
        dst_port_be,
    })
}

fn v6_flow() -> impl Strategy<Value = Flow<[u32; 4]>> {
    any::<([u32; 4], [u32; 4], u16, u16)>().prop_map(|(src, dst, src_port_be, dst_port_be)| Flow {
        src,
        dst,
        src_port_be,
        dst_port_be,
    })
}

proptest! {
    #[test]
    fn v4_frame_is_what_etherparse_makes_of_the_new_flow(
        from in v4_flow(),
        to in v4_flow(),
        ttl in 1..=255_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..70),
    ) {
        let frame = Bytes::new(&v4_segment(&from, ttl, &payload));
        rewrite::in_place::<V4, _>(&frame, 14, 34, &from, &to).unwrap();
        rewrite::age::<V4, _>(&frame, 14).unwrap();
        prop_assert_eq!(frame.to_vec(), v4_segment(&to, ttl - 1, &payload));
    }

    #[test]
    fn v6_frame_is_what_etherparse_makes_of_the_new_flow(
        from in v6_flow(),
        to in v6_flow(),
        ttl in 1..=255_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..70),
    ) {
        let frame = Bytes::new(&v6_segment(&from, ttl, &payload));
        rewrite::in_place::<V6, _>(&frame, 14, 54, &from, &to).unwrap();
        rewrite::age::<V6, _>(&frame, 14).unwrap();
        prop_assert_eq!(frame.to_vec(), v6_segment(&to, ttl - 1, &payload));
    }

    #[test]
    fn frame_that_is_too_short_is_refused(from in v4_flow(), to in v4_flow(), len in 0..54_usize) {
        let bytes = v4_segment(&from, 64, b"");
        let frame = Bytes::new(&bytes[..len]);
        prop_assert!(rewrite::in_place::<V4, _>(&frame, 14, 34, &from, &to).is_none());
    }
}
