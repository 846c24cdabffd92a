//! Settling and collecting against real maps, step by step. What the program does in between is
//! written by hand here; the model suite has the program itself.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    backend::{ADMIN_DRAINING, Backend, HEALTH_DEAD},
    exception::{EXCEPTION_CLOSING, EXCEPTION_KEPT, EXCEPTION_OPENED, Exception},
    flow::{Addr, Family, Flow, v4_addr, v6_addr},
    limits::map,
    nat::NatTimeouts,
    slot::Slot,
};
use lb_userspace::dataplane::{
    data_path::DataPath,
    image::Write,
    load::BpfLog,
    maps::Maps,
    rings::Rings,
    settle::{
        census::{ExceptionCounts, SettleCensus, SlotCounts},
        clock::deciseconds,
        scope::{RingScope, SettleScope, VipScope},
        settler::Settler,
    },
    sizes::MapSizes,
};

use crate::sandbox::{Sandbox, sandbox};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000_000 * SECOND;
const SETTLE: u64 = 10 * SECOND;
const TIMEOUTS: NatTimeouts =
    NatTimeouts { half_open_ns: 30 * SECOND, established_ns: 7200 * SECOND, closing_ns: 60 * SECOND };
/// The backends of these tests; all serve, in their third generation.
const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
/// The rings of both families have ten slots each.
const LEN: u32 = 10;
const RINGS: [u32; 2] = [100, 200];

struct Bed {
    _data_path: DataPath,
    maps: Maps,
    rings: Arc<Rings>,
    settler: Settler,
    v4: Tables<u32>,
    v6: Tables<[u32; 4]>,
}

impl Bed {
    fn new(sandbox: &Sandbox, sizes: &[(&'static str, u32)]) -> Self {
        let sizes: MapSizes = sizes.iter().copied().collect();
        let pin_dir = sandbox.pin_dir();
        let data_path = DataPath::open_sized(&pin_dir, BpfLog::Off, &sizes).unwrap();
        let maps = Maps::open(&pin_dir).unwrap();
        let rings = maps.shared_slots();
        let mut bed = Self {
            _data_path: data_path,
            settler: Settler::open(&pin_dir, rings.clone()).unwrap(),
            maps,
            rings,
            v4: Tables::open(&pin_dir, [map::HALF_OPEN_V4, map::ESTABLISHED_V4, map::SEEN_V4]),
            v6: Tables::open(&pin_dir, [map::HALF_OPEN_V6, map::ESTABLISHED_V6, map::SEEN_V6]),
        };
        for index in [A, B, C] {
            bed.backend(index, |_| {});
        }
        for offset in RINGS {
            bed.rings.fill(offset, &[Slot::settled(A); LEN as usize]);
        }
        bed
    }

    fn backend(&mut self, index: u32, change: impl Fn(&mut Backend)) {
        let mut backend = Backend { family: 4, generation: 3, flags: Backend::FLAG_SERVING, ..Backend::FREE };
        change(&mut backend);
        self.maps.apply(&Write::Backend { index, backend: backend.into() }).unwrap();
    }

    /// As the owner of the maps does it, in both families.
    fn change(&mut self, at: u32, owner: u32, now_ns: u64) {
        for offset in RINGS {
            let from = self.rings.slot(offset + at).unwrap();
            let write = Write::Slot { at: offset + at, from, to: from.changed(owner), now_ds: deciseconds(now_ns) };
            self.maps.apply(&write).unwrap();
        }
    }

    /// Without the flags that say in which tables it has entries.
    fn slot(&self, at: u32) -> Slot {
        self.whole_slot(at).clear(Slot::IN_TABLES)
    }

    fn whole_slot(&self, at: u32) -> Slot {
        let [v4, v6] = RINGS.map(|offset| self.rings.slot(offset + at).unwrap());
        assert_eq!(v4, v6, "both families go the same way");
        v4
    }

    /// As the program sets a flag.
    fn mark(&self, at: u32, flags: u64) {
        for offset in RINGS {
            let slot = self.rings.slot(offset + at).unwrap();
            self.rings.compare_exchange(offset + at, slot, slot.with(flags)).unwrap();
        }
    }

    fn put(&mut self, kind: Kind, flow: u16, at: u32, entry: Exception) {
        if !self.slot(at).is_settled() {
            let flag = match kind {
                HalfOpen => Slot::IN_HALF_OPEN,
                Established => Slot::IN_ESTABLISHED,
                Seen => Slot::IN_SEEN,
            };
            self.mark(at, flag);
        }
        self.v4.put(kind, flow, Exception { slot: RINGS[0] + at, ..entry });
        self.v6.put(kind, flow, Exception { slot: RINGS[1] + at, ..entry });
    }

    fn remove(&mut self, kind: Kind, flow: u16) {
        self.v4.remove(kind, flow);
        self.v6.remove(kind, flow);
    }

    /// The owner and the flags of an entry.
    fn find(&self, kind: Kind, flow: u16) -> Option<(u32, u32)> {
        let [v4, v6] = [self.v4.find(kind, flow), self.v6.find(kind, flow)];
        assert_eq!(v4, v6, "both families go the same way");
        v4
    }

    fn pass(&mut self, now_ns: u64) -> SettleCensus {
        self.settler.pass(&scope(), now_ns).unwrap()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    HalfOpen,
    Established,
    Seen,
}

use Kind::{Established, HalfOpen, Seen};

struct Tables<A>([HashMap<MapData, Flow<A>, Exception>; 3]);

impl<A: Address> Tables<A>
where
    Flow<A>: Pod,
{
    fn open(pin_dir: &Path, names: [&str; 3]) -> Self {
        let open = |name| Map::from_map_data(MapData::from_pin(pin_dir.join(name)).unwrap()).unwrap();
        Self(names.map(|name| open(name).try_into().unwrap()))
    }

    fn put(&mut self, kind: Kind, flow: u16, entry: Exception) {
        self.0[kind as usize].insert(A::flow(flow), entry, 0).unwrap();
    }

    fn remove(&mut self, kind: Kind, flow: u16) {
        self.0[kind as usize].remove(&A::flow(flow)).unwrap();
    }

    fn find(&self, kind: Kind, flow: u16) -> Option<(u32, u32)> {
        let entry = self.0[kind as usize].get(&A::flow(flow), 0).ok()?;
        Some((entry.backend, entry.flags))
    }
}

/// A flow of a client to port 80 of the VIP of its family.
trait Address: Addr {
    fn flow(port: u16) -> Flow<Self>;
}

impl Address for u32 {
    fn flow(port: u16) -> Flow<Self> {
        let [src, dst] = ["10.1.0.1", "192.0.2.10"].map(|text| v4_addr(text.parse().unwrap()));
        Flow { src, dst, src_port_be: port.to_be(), dst_port_be: 80_u16.to_be() }
    }
}

impl Address for [u32; 4] {
    fn flow(port: u16) -> Flow<Self> {
        let [src, dst] = ["fd01::1", "2001:db8::10"].map(|text| v6_addr(text.parse().unwrap()));
        Flow { src, dst, src_port_be: port.to_be(), dst_port_be: 80_u16.to_be() }
    }
}

fn scope() -> SettleScope {
    let ring =
        |(family, offset)| RingScope { family, offset, len: LEN, service: 1, settle_ns: SETTLE, is_warming_up: false };
    let vips: [SocketAddr; 2] = ["192.0.2.10:80", "[2001:db8::10]:80"].map(|vip| vip.parse().unwrap());
    let vip = |(at, offset): (usize, u32)| VipScope { offset, len: LEN, stats: at as u32 };
    SettleScope {
        rings: Family::BOTH.into_iter().zip(RINGS).map(ring).collect(),
        vips: vips.into_iter().zip(RINGS.into_iter().enumerate().map(vip)).collect(),
        timeouts: TIMEOUTS,
        holds: false,
    }
}

/// Of a flow at `backend`, seen a second ago.
fn entry(backend: u32, flags: u32) -> Exception {
    Exception { backend, generation: 3, slot: 0, sequence: 7, flags, reserved: 0, last_seen_ns: NOW - SECOND }
}

#[test]
fn flows_that_were_seen_at_the_previous_owner_stay_there_after_their_slot_has_settled() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.change(3, B, NOW - SETTLE);
        bed.put(Seen, 1, 3, entry(A, 0));
        bed.put(Seen, 2, 3, entry(A, EXCEPTION_CLOSING));
        // It was seen while its backend was away, and went elsewhere.
        bed.put(Seen, 3, 3, entry(B, 0));
        bed.put(Established, 4, 3, entry(B, EXCEPTION_OPENED));
        bed.put(HalfOpen, 5, 3, entry(B, EXCEPTION_OPENED));
        let census = bed.pass(NOW);
        assert_eq!(bed.whole_slot(3), Slot::new(B, B, Slot::TRACKED | Slot::IN_ESTABLISHED));
        assert_eq!(bed.find(Established, 1), Some((A, EXCEPTION_KEPT)));
        assert_eq!(bed.find(Established, 2), Some((A, EXCEPTION_KEPT | EXCEPTION_CLOSING)));
        assert_eq!([1, 2, 3].map(|flow| bed.find(Seen, flow)), [None; 3]);
        // What agrees with the ring needs no entry.
        assert_eq!((bed.find(Established, 4), bed.find(HalfOpen, 5)), (None, None));
        let kept = ExceptionCounts { established: 2, ..ExceptionCounts::default() };
        assert_eq!((census.settled, census.collected, census.removed), (2, 0, 4));
        assert_eq!(census.vips, BTreeMap::from([(0, kept), (1, kept)]));
        assert_eq!(census.backends, BTreeMap::from([(A, ExceptionCounts { established: 4, ..kept })]));
        let tracked = SlotCounts { tracked: 1, ..SlotCounts::default() };
        assert_eq!(census.rings, BTreeMap::from(RINGS.map(|offset| (offset, tracked))));

        // The closed one is over after a minute; with the last one the slot is settled.
        bed.pass(NOW + 70 * SECOND);
        assert_eq!((bed.find(Established, 1), bed.find(Established, 2)), (Some((A, EXCEPTION_KEPT)), None));
        bed.remove(Established, 1);
        assert_eq!(bed.pass(NOW + 80 * SECOND).collected, 2);
        assert_eq!(bed.slot(3), Slot::settled(B));
    });
}

#[test]
fn slots_of_a_service_that_warms_up_stay_tracked_until_it_has_its_verdicts() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.mark(4, Slot::TRACKED);
        let mut warming_up = scope();
        for ring in &mut warming_up.rings {
            ring.is_warming_up = true;
        }
        let census = bed.settler.pass(&warming_up, NOW).unwrap();
        assert_eq!(bed.whole_slot(4), Slot::new(A, A, Slot::TRACKED));
        assert_eq!(census.rings[&RINGS[0]].tracked, 1);
        bed.pass(NOW);
        assert_eq!(bed.whole_slot(4), Slot::settled(A));
    });
}

#[test]
fn slot_waits_for_its_time_and_for_a_previous_owner_that_drains() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.change(0, B, NOW - SETTLE + SECOND);
        bed.change(1, B, NOW - 2 * SETTLE);
        bed.change(1, C, NOW - SECOND);
        bed.backend(A, |backend| backend.admin = ADMIN_DRAINING);
        assert_eq!(bed.pass(NOW).settled, 0);
        bed.backend(A, |_| {});
        // The clock of slot 1 has counted since its owners last agreed, not since the second
        // change.
        assert_eq!(bed.pass(NOW).settled, 2);
        assert_eq!((bed.slot(0), bed.slot(1)), (Slot::new(B, A, 0), Slot::settled(C)));
        assert_eq!(bed.pass(NOW + SECOND).settled, 2);
        assert_eq!(bed.slot(0), Slot::settled(B));
    });
}

#[test]
fn restarted_agent_goes_on_where_the_one_before_ended() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        let differ = Slot::new(B, A, 0);
        for offset in RINGS {
            // Settling, its flows not kept yet; collecting, and then changed; in transition, with a
            // clock from before a reboot, and without.
            let tracked = Slot::TRACKED;
            for (at, slot, clock) in [
                (0, Slot::new(B, B, tracked | Slot::SETTLING), 5),
                (1, Slot::new(C, B, tracked | Slot::COLLECTING | Slot::WRITTEN), deciseconds(NOW)),
                (2, differ, deciseconds(NOW) + 50),
                (3, differ, 0),
                (4, Slot::new(B, B, Slot::WRITTEN), 0),
            ] {
                bed.rings.fill(offset + at, &[slot]);
                bed.rings.set_time(offset + at, clock);
            }
        }
        bed.put(Seen, 1, 0, entry(A, 0));
        bed.put(Seen, 2, 0, entry(B, 0));
        bed.pass(NOW);
        assert_eq!((bed.find(Established, 1), bed.find(Established, 2)), (Some((A, EXCEPTION_KEPT)), None));
        assert_eq!((bed.find(Seen, 1), bed.find(Seen, 2)), (None, None));
        assert_eq!(bed.slot(0), Slot::new(B, B, Slot::TRACKED));
        assert_eq!(bed.slot(1), Slot::new(C, B, Slot::TRACKED));
        assert_eq!((bed.slot(2), bed.slot(3), bed.slot(4)), (differ, differ, Slot::settled(B)));
        assert_eq!([2, 3].map(|at| bed.rings.time(RINGS[0] + at)), [deciseconds(NOW); 2], "they begin to count now");
        bed.pass(NOW + SETTLE);
        assert_eq!((bed.slot(2), bed.slot(3)), (Slot::settled(B), Slot::settled(B)));
    });
}

#[test]
fn without_room_for_its_flows_a_slot_does_not_settle() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[(map::ESTABLISHED_V4, 2), (map::ESTABLISHED_V6, 2)]);
        for at in [0, 1] {
            bed.change(at, B, NOW - SETTLE);
        }
        for (flow, at) in [(1, 0), (2, 0), (3, 1)] {
            bed.put(Seen, flow, at, entry(A, 0));
        }
        let census = bed.pass(NOW);
        assert_eq!((bed.slot(0), bed.slot(1)), (Slot::new(B, B, Slot::TRACKED), Slot::new(B, A, 0)));
        assert_eq!(census.rings[&RINGS[0]].without_room, 1);
        assert_eq!(bed.find(Seen, 3), Some((A, 0)));
        bed.remove(Established, 1);
        bed.pass(NOW + SECOND);
        let census = bed.pass(NOW + 2 * SECOND);
        assert_eq!(bed.slot(1), Slot::new(B, B, Slot::TRACKED));
        assert_eq!((bed.find(Established, 3), census.rings[&RINGS[0]].without_room), (Some((A, EXCEPTION_KEPT)), 0));
    });
}

#[test]
fn table_that_fills_up_while_a_slot_settles_leaves_it_settling_and_loses_nothing() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[(map::ESTABLISHED_V4, 2), (map::ESTABLISHED_V6, 2)]);
        bed.change(0, B, NOW - SETTLE);
        bed.change(5, C, NOW);
        bed.put(Seen, 1, 0, entry(A, 0));
        bed.put(Seen, 2, 0, entry(A, 0));
        assert_eq!(bed.settler.begin(&scope(), NOW).unwrap(), 2);
        assert_eq!(bed.slot(0), Slot::new(B, B, Slot::TRACKED | Slot::SETTLING));
        // The program confirms another flow just now.
        bed.put(Established, 9, 5, entry(C, EXCEPTION_OPENED));
        bed.settler.keep(&scope(), NOW).unwrap();
        bed.settler.forget().unwrap();
        assert!(bed.slot(0).has(Slot::SETTLING), "SEEN is still asked");
        assert_eq!([1, 2].map(|flow| bed.find(Seen, flow)), [Some((A, 0)); 2]);
        // Its owner changes meanwhile: flows of both owners before are looked after.
        bed.change(0, C, NOW);
        assert_eq!(bed.slot(0), Slot::new(C, B, Slot::TRACKED | Slot::SETTLING));
        bed.remove(Established, 9);
        bed.pass(NOW + SECOND);
        assert_eq!(bed.slot(0), Slot::new(C, B, Slot::TRACKED));
        assert_eq!([1, 2].map(|flow| bed.find(Established, flow)), [Some((A, EXCEPTION_KEPT)); 2]);
        assert_eq!([1, 2].map(|flow| bed.find(Seen, flow)), [None; 2]);
    });
}

#[test]
fn what_the_program_does_between_the_steps_of_settling_is_kept() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.change(0, B, NOW - SETTLE);
        for flow in [1, 2, 3] {
            bed.put(Seen, flow, 0, entry(A, 0));
        }
        bed.settler.begin(&scope(), NOW).unwrap();
        // A client opens flow 1 anew, and has been answered by the new owner.
        bed.remove(Seen, 1);
        bed.put(Established, 1, 0, entry(B, EXCEPTION_OPENED));
        bed.settler.keep(&scope(), NOW).unwrap();
        assert_eq!(bed.find(Established, 1), Some((B, EXCEPTION_OPENED)));
        assert_eq!(bed.slot(0), Slot::new(B, B, Slot::TRACKED));
        // The slot changes, and the program sees flow 2 anew, at another owner: that is not what
        // was scanned.
        bed.change(0, C, NOW);
        bed.put(Seen, 2, 0, entry(B, 0));
        bed.settler.forget().unwrap();
        assert_eq!([1, 2, 3].map(|flow| bed.find(Seen, flow)), [None, Some((B, 0)), None]);
        assert_eq!(bed.slot(0), Slot::new(C, B, Slot::TRACKED));
        assert_eq!(bed.rings.time(RINGS[0]), deciseconds(NOW));
    });
}

#[test]
fn entry_written_while_a_slot_is_collected_keeps_it_tracked() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        for offset in RINGS {
            bed.rings.fill(offset, &[Slot::new(B, B, Slot::TRACKED); 2]);
        }
        bed.settler.begin(&scope(), NOW).unwrap();
        assert_eq!(bed.settler.mark(&scope()), 4);
        assert_eq!(bed.slot(0), Slot::new(B, B, Slot::TRACKED | Slot::COLLECTING));
        bed.settler.collect(&scope(), NOW).unwrap();
        bed.mark(0, Slot::WRITTEN);
        bed.put(HalfOpen, 1, 0, entry(B, EXCEPTION_OPENED));
        assert_eq!(bed.settler.finish(&scope()).collected, 2);
        assert_eq!((bed.slot(0), bed.slot(1)), (Slot::new(B, B, Slot::TRACKED), Slot::settled(B)));
        // One that read the marked word and wrote its own mark after all was done.
        bed.mark(1, Slot::WRITTEN);
        bed.put(HalfOpen, 2, 1, entry(B, EXCEPTION_OPENED));
        assert!(!bed.slot(1).is_settled());
        bed.pass(NOW);
        assert_eq!((bed.slot(0), bed.slot(1)), (Slot::settled(B), Slot::settled(B)));
        assert_eq!([1, 2].map(|flow| bed.find(HalfOpen, flow)), [None; 2]);
    });
}

#[test]
fn slot_that_changes_while_it_is_collected_keeps_its_entries_and_its_mark_goes() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        for offset in RINGS {
            bed.rings.fill(offset, &[Slot::new(B, B, Slot::TRACKED)]);
        }
        bed.put(Established, 1, 0, entry(B, EXCEPTION_OPENED));
        bed.put(Established, 2, 0, entry(A, EXCEPTION_KEPT));
        bed.settler.begin(&scope(), NOW).unwrap();
        bed.settler.mark(&scope());
        bed.change(0, C, NOW);
        bed.settler.collect(&scope(), NOW).unwrap();
        bed.settler.finish(&scope());
        assert_eq!(bed.slot(0), Slot::new(C, B, Slot::TRACKED));
        assert_eq!(
            (bed.find(Established, 1), bed.find(Established, 2)),
            (Some((B, EXCEPTION_OPENED)), Some((A, EXCEPTION_KEPT)))
        );
    });
}

#[test]
fn entries_of_vips_that_a_source_may_still_want_stay_until_it_has_said_so() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.put(Established, 1, 0, Exception { last_seen_ns: NOW - 600 * SECOND, ..entry(A, 0) });
        let unknown = SettleScope { vips: BTreeMap::new(), rings: Vec::new(), ..scope() };
        let pass = |bed: &mut Bed, scope: &SettleScope| bed.settler.pass(scope, NOW).unwrap();
        assert_eq!(pass(&mut bed, &SettleScope { holds: true, ..unknown.clone() }).removed, 0);
        assert_eq!(bed.find(Established, 1), Some((A, 0)), "no source has said that it is over");
        assert_eq!(pass(&mut bed, &unknown).removed, 2, "one of each family");
        assert_eq!(bed.find(Established, 1), None);
    });
}

#[test]
fn entries_of_backends_that_are_gone_and_of_vips_that_left_go() {
    sandbox(async |sandbox| {
        let mut bed = Bed::new(sandbox, &[]);
        bed.change(0, B, NOW);
        bed.put(Established, 1, 0, Exception { generation: 2, ..entry(A, 0) });
        bed.put(Established, 2, 0, entry(A, 0));
        bed.put(Established, 3, 0, entry(C, 0));
        bed.put(Seen, 4, 0, Exception { last_seen_ns: NOW - 7201 * SECOND, ..entry(A, 0) });
        bed.put(HalfOpen, 5, 0, Exception { last_seen_ns: NOW - 31 * SECOND, ..entry(B, 0) });
        // Of the same VIP, but of a ring that it no longer has.
        bed.put(Established, 6, 50, Exception { last_seen_ns: NOW - 6 * SECOND, ..entry(A, 0) });
        bed.backend(A, |backend| (backend.flags, backend.health) = (0, HEALTH_DEAD));
        bed.backend(C, |backend| backend.flags = 0);
        let census = bed.pass(NOW);
        assert_eq!(bed.find(Established, 2), Some((A, 0)), "a dead one may come back");
        assert_eq!([1, 3, 6].map(|flow| bed.find(Established, flow)), [None; 3]);
        assert_eq!((bed.find(Seen, 4), bed.find(HalfOpen, 5)), (None, None));
        assert_eq!(census.removed, 10);
        assert_eq!(bed.slot(0), Slot::new(B, A, 0));
    });
}
