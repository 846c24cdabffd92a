//! The system under test: the program as it is loaded, its maps pinned in a BPF file system of the
//! test's own, and the agent's code.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, Map, MapData},
    programs::Xdp,
};
use lb_common::{
    backend::Backend,
    exception::Exception,
    flow::Family,
    limits::{map, program},
    slot::Slot,
    syn::Syn,
};
use lb_userspace::clock::boottime_ns;
use weir_tests::model::{BACKENDS, FLOWS, Kind, Outcome, Packet, SETTLE_TIME, SLOTS, System, World};

use crate::{
    agent::{Agent, SECOND, Shape, hash_key},
    bed::{self, BACK_MAC, Interfaces, backend_mac},
    frames::{ACK, FIN, RST, SYN, Segment},
    tables::{self, NAMES, Tables},
};

/// Entries of each table of exceptions: a scan takes no time.
const ENTRIES: u32 = 1024;
/// Every so many waits the agent reads the maps anew.
const READ_EVERY: u32 = 8;

/// The program, loaded, and its maps, pinned.
pub struct Program {
    ebpf: Ebpf,
    pin_dir: PathBuf,
}

impl Program {
    pub fn load(bpffs: &Path) -> Self {
        let object = std::env::var_os("WEIR_BPF_OBJECT").map(PathBuf::from);
        let object = object.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/weir.bpf.o"));
        assert!(object.exists(), "{} doesn't exist: build it with `cargo xtask build-ebpf`", object.display());
        let pin_dir = bpffs.join("model");
        std::fs::create_dir(&pin_dir).unwrap();
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        for name in tables::ALL {
            loader.map_max_entries(name, ENTRIES);
        }
        for name in map::PINNED {
            loader.map_pin_path(name, pin_dir.join(name));
        }
        let mut ebpf = loader.load_file(object).unwrap();
        let xdp: &mut Xdp = ebpf.program_mut(program::XDP).unwrap().try_into().unwrap();
        xdp.load().unwrap();
        Self { ebpf, pin_dir }
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Shows it a frame that comes in from the clients.
    pub fn show(&self, on: Interfaces, frame: &[u8]) -> Outcome {
        let mut out = vec![0; frame.len() + 64];
        let words: [u32; 6] = [0, frame.len() as u32, 0, on.front, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let program: &Xdp = self.ebpf.program(program::XDP).unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        let [to, from] = [&out[..6], &out[6..12]];
        let backend = (0..BACKENDS).find(|number| to == backend_mac(number + 1));
        match (result.return_value, backend) {
            (1, _) => Outcome::Dropped,
            (3, None) if from == bed::FRONT_MAC => Outcome::Reset,
            (4, Some(backend)) if from == BACK_MAC => Outcome::To(backend),
            (2, _) => Outcome::Other("passed to the stack"),
            _ => Outcome::Other("sent somewhere else"),
        }
    }
}

pub struct Kernel {
    program: Program,
    on: Interfaces,
    family: Family,
    agent: Agent,
    tables: Box<dyn Tables>,
    rings: Array<MapData, u64>,
    times: Array<MapData, u64>,
    syns: Array<MapData, u64>,
    backends: Array<MapData, Backend>,
    /// Seconds, in the time of the model.
    now: u64,
    waits: u32,
}

impl Kernel {
    pub fn load(bpffs: &Path, family: Family, on: Interfaces) -> Self {
        let program = Program::load(bpffs);
        let shape = Shape {
            families: vec![family],
            slots: SLOTS.into(),
            settle_time: Duration::from_secs(SETTLE_TIME),
            waits: false,
        };
        let open = |name: &str| MapData::from_pin(program.pin_dir().join(name)).unwrap();
        let words = |name: &str| Array::try_from(Map::from_map_data(open(name)).unwrap()).unwrap();
        Self {
            on,
            family,
            agent: Agent::new(program.pin_dir(), shape, on),
            tables: tables::of_family(family, &hash_key(), open),
            rings: words(map::RINGS),
            times: words(map::SLOT_TIMES),
            syns: words(map::SYNS),
            backends: Array::try_from(Map::from_map_data(open(map::BACKENDS)).unwrap()).unwrap(),
            now: 0,
            waits: 0,
            program,
        }
    }

    /// As if nothing had been before.
    pub fn reset(&mut self) {
        self.agent.undo();
        self.tables.clear();
        for slot in 0..u32::from(SLOTS) {
            self.rings.set(slot, 0, 0).unwrap();
            self.times.set(slot / 2, 0, 0).unwrap();
        }
        for flow in 0..FLOWS {
            self.syns.set(self.tables.syn_place(flow), 0, 0).unwrap();
        }
        (self.now, self.waits) = (1000, 0);
    }

    fn now_ns(&self) -> u64 {
        self.now * SECOND
    }

    fn frame(&self, Packet { flow, kind, sequence }: Packet) -> Vec<u8> {
        let flags = match kind {
            Kind::Syn => SYN,
            Kind::Ack | Kind::Data => ACK,
            Kind::Fin => FIN | ACK,
            Kind::Rst => RST,
        };
        let segment = Segment::new(self.tables.client(flow), bed::web(self.family), flags);
        let segment = segment.sequence(sequence, if kind == Kind::Syn { 0 } else { 1 });
        segment.payload(if kind == Kind::Data { b"data" } else { b"" }).frame()
    }

    /// The program's clock is the real one, which stands still as far as the model is concerned. So
    /// for it what a flow's entries say of their age is put in its time, and back again.
    fn in_programs_time(&mut self, flow: u8, run: impl FnOnce(&Self) -> Outcome) -> Outcome {
        let before_ns = boottime_ns();
        let now_ns = self.now_ns();
        let before = self.tables.entries(flow);
        for (table, entry) in before.iter().enumerate() {
            if let Some(entry) = entry {
                let last_seen_ns = before_ns.wrapping_sub(now_ns - entry.last_seen_ns);
                self.tables.set(flow, table, Exception { last_seen_ns, ..*entry });
            }
        }
        let outcome = run(self);
        for (table, entry) in self.tables.entries(flow).into_iter().enumerate() {
            if let Some(entry) = entry {
                let is_fresh = entry.last_seen_ns.wrapping_sub(before_ns) < u64::MAX / 2;
                let age_ns = if is_fresh { 0 } else { before_ns.wrapping_sub(entry.last_seen_ns) };
                let last_seen_ns = now_ns - age_ns;
                self.tables.set(flow, table, Exception { last_seen_ns, ..entry });
            }
        }
        outcome
    }
}

impl System for Kernel {
    fn send(&mut self, packet: Packet) -> Outcome {
        let frame = self.frame(packet);
        self.in_programs_time(packet.flow, |kernel| kernel.program.show(kernel.on, &frame))
    }

    fn wait(&mut self, seconds: u64) {
        self.now += seconds;
        self.waits += 1;
        if self.waits.is_multiple_of(READ_EVERY) {
            self.agent.read();
        }
    }

    fn reconcile(&mut self, world: &World) {
        self.agent.reconcile(world, self.now_ns());
    }

    fn step(&mut self) -> bool {
        self.agent.step(self.now_ns())
    }

    fn restart(&mut self, world: &World) {
        self.agent.restart();
        self.agent.reconcile(world, self.now_ns());
    }

    fn explain(&mut self, flow: u8) -> String {
        let at = self.agent.programmed.ranges().first().map_or(0, |(offset, _)| *offset) + u32::from(flow % SLOTS);
        let slot = Slot(self.rings.get(&at, 0).unwrap());
        let time = (self.times.get(&(at / 2), 0).unwrap() >> (at % 2 * 32)) as u32;
        let syn = Syn(self.syns.get(&self.tables.syn_place(flow), 0).unwrap());
        let mut text = format!("{slot:?} at {at}, since {time}; {syn:?} of owner {}", syn.owner());
        for (name, entry) in NAMES.into_iter().zip(self.tables.entries(flow)) {
            text += &format!("; {name} {entry:?}");
        }
        for index in 1..12 {
            let backend = self.backends.get(&index, 0).unwrap();
            if backend != Backend::FREE {
                let Backend { flags, generation, admin, health, .. } = backend;
                let address = lb_userspace::dataplane::plan::address(&backend);
                text += &format!(
                    "; [{index}] {address:?} flags {flags} generation {generation} admin {admin} health {health}"
                );
            }
        }
        text
    }
}
