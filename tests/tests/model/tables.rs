//! The tables of exceptions of one family, by the number of the flow, whichever family it is.

use std::net::SocketAddr;

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use lb_common::{
    exception::Exception,
    flow::{Addr, Family, Flow, V4Addr, V6Addr, any_addr},
    hash::{HashKey, slot_of},
    limits::map,
    syn::Syn,
};
use weir_tests::model::{FLOWS, SLOTS};

use crate::bed;

/// ESTABLISHED, HALF_OPEN, SEEN: in this order everywhere here.
pub const NAMES: [&str; 3] = ["ESTABLISHED", "HALF_OPEN", "SEEN"];

/// Those of both families, by their own names.
pub const ALL: [&str; 6] =
    [map::ESTABLISHED_V4, map::HALF_OPEN_V4, map::SEEN_V4, map::ESTABLISHED_V6, map::HALF_OPEN_V6, map::SEEN_V6];

pub trait Tables {
    /// Where a flow comes from.
    fn client(&self, flow: u8) -> SocketAddr;

    /// Its place in SYNS.
    fn syn_place(&self, flow: u8) -> u32;

    fn entries(&self, flow: u8) -> [Option<Exception>; 3];

    fn set(&mut self, flow: u8, table: usize, entry: Exception);

    fn clear(&mut self);
}

pub fn of_family(family: Family, key: &HashKey, open: impl Fn(&str) -> MapData) -> Box<dyn Tables> {
    match family {
        Family::V4 => {
            Box::new(Of::<V4Addr>::new(family, key, [map::ESTABLISHED_V4, map::HALF_OPEN_V4, map::SEEN_V4].map(open)))
        }
        Family::V6 => {
            Box::new(Of::<V6Addr>::new(family, key, [map::ESTABLISHED_V6, map::HALF_OPEN_V6, map::SEEN_V6].map(open)))
        }
    }
}

struct Of<A> {
    tables: [HashMap<MapData, Flow<A>, Exception>; 3],
    flows: Vec<(SocketAddr, Flow<A>, u32)>,
}

impl<A: Addr> Of<A>
where
    Flow<A>: Pod,
{
    fn new(family: Family, key: &HashKey, tables: [MapData; 3]) -> Self {
        let hash_map = |data| HashMap::try_from(Map::from_map_data(data).unwrap()).unwrap();
        Self { tables: tables.map(hash_map), flows: (0..FLOWS).map(|flow| find(family, key, flow)).collect() }
    }
}

/// A flow of the slot that the model says.
fn find<A: Addr>(family: Family, key: &HashKey, number: u8) -> (SocketAddr, Flow<A>, u32) {
    let vip = bed::web(family);
    (0..1000)
        .find_map(|turn| {
            let client = SocketAddr::new(bed::client(family).ip(), 10_000 + u16::from(number) + 10 * turn);
            let flow = Flow {
                src: A::from_any(&any_addr(client.ip())),
                dst: A::from_any(&any_addr(vip.ip())),
                src_port_be: client.port().to_be(),
                dst_port_be: vip.port().to_be(),
            };
            let hash = A::hash_flow(key, &flow);
            let is_of_slot = slot_of(hash, SLOTS.into()) == u32::from(number % SLOTS);
            is_of_slot.then(|| (client, flow, Syn::place(hash)))
        })
        .unwrap()
}

impl<A: Addr> Tables for Of<A>
where
    Flow<A>: Pod,
{
    fn client(&self, flow: u8) -> SocketAddr {
        self.flows[usize::from(flow)].0
    }

    fn syn_place(&self, flow: u8) -> u32 {
        self.flows[usize::from(flow)].2
    }

    fn entries(&self, flow: u8) -> [Option<Exception>; 3] {
        let key = &self.flows[usize::from(flow)].1;
        self.tables.each_ref().map(|table| match table.get(key, 0) {
            Ok(entry) => Some(entry),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("{error}"),
        })
    }

    fn set(&mut self, flow: u8, table: usize, entry: Exception) {
        self.tables[table].insert(self.flows[usize::from(flow)].1, entry, 0).unwrap();
    }

    fn clear(&mut self) {
        for table in &mut self.tables {
            let keys: Vec<Flow<A>> = table.keys().map(Result::unwrap).collect();
            for key in keys {
                table.remove(&key).unwrap();
            }
        }
    }
}
