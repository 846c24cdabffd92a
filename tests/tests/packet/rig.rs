//! The programs, loaded once for the whole suite without pins, and their maps, emptied before each
//! test. A test runs on a thread with a network namespace of its own, which goes with the thread;
//! so FIB look-ups are answered by a real kernel.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    ops::DerefMut,
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{Program, SchedClassifier, Xdp},
};
use lb_common::{
    backend::Backend,
    flow::{AnyAddr, Family},
    limits::{SYNS_LEN, map, program},
    service::Stats,
    settings::Settings,
    verdict::{
        EVENT_CLOSED_REUSED, EVENT_ESTABLISHED_FULL, EVENT_EXCEPTIONS_FULL, EVENT_HALF_OPEN_FULL,
        EVENT_HALF_OPEN_STOLEN, EVENT_SEEN_FULL, EVENT_SYN_AGAIN, EVENT_TOO_BIG_UNSAID, REASONS, Reason, verdict_index,
    },
};
use nix::sched::{CloneFlags, unshare};

use crate::{
    bed::{self, Interfaces},
    tables::{OfFamily, Tables, clear},
};

/// Programs and maps.
pub struct Rig {
    pub ebpf: Ebpf,
    pub on: Interfaces,
    pub settings: Array<MapData, Settings>,
    pub backends: Array<MapData, Backend>,
    pub rings: Array<MapData, u64>,
    services_epoch: Array<MapData, u64>,
    pub snat_addresses: Array<MapData, AnyAddr>,
    cursors: Array<MapData, u64>,
    syns: Array<MapData, u64>,
    /// The next hops that the program remembers, as bytes.
    hops: PerCpuArray<MapData, [u64; 5]>,
    /// How often it has answered that a packet is too big, as bytes.
    answered: PerCpuArray<MapData, [u64; 2]>,
    service_stats: PerCpuArray<MapData, Stats>,
    backend_stats: PerCpuArray<MapData, Stats>,
    verdicts: PerCpuArray<MapData, u64>,
    ways_out: HashMap<MapData, u32, u32>,
    v4: OfFamily<u32>,
    v6: OfFamily<[u32; 4]>,
}

/// Where a program sees a packet, and which program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Xdp,
    Ingress,
    Egress,
}

/// What a program did with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    pub action: Action,
    pub frame: Vec<u8>,
    /// What it counted on the interface, by name.
    pub counted: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Pass,
    Drop,
    Tx,
    Redirect,
    /// At TC: what the next program or the stack says.
    Unspec,
    /// Anything that no test wants.
    Other(u32),
}

/// The part of the maps' arrays that tests use, and that is cleared between them.
const USED: u32 = 32;
pub const RING_USED: u32 = 512;

/// Runs `test` in a namespace of its own. Needs root, and says so.
pub fn rig(test: impl FnOnce(&mut Rig) + Send + 'static) {
    rig_of(loaded, test);
}

/// The same with a table of established flows that holds only `flows` flows of each family.
pub fn small_rig(flows: u32, test: impl FnOnce(&mut Rig) + Send + 'static) {
    rig_of(move || Box::new(Rig::load(2 * flows)), test);
}

fn rig_of<R: DerefMut<Target = Rig>>(
    rig: impl FnOnce() -> R + Send + 'static,
    test: impl FnOnce(&mut Rig) + Send + 'static,
) {
    assert!(nix::unistd::geteuid().is_root(), "needs root: it makes network namespaces and loads BPF programs");
    let outcome = thread::spawn(move || {
        let mut rig = rig();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        rig.on = bed::make();
        rig.reset();
        test(&mut rig);
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The one of the whole suite; its maps are as large as the agent's.
fn loaded() -> MutexGuard<'static, Rig> {
    static LOADED: OnceLock<Mutex<Rig>> = OnceLock::new();
    LOADED.get_or_init(|| Mutex::new(Rig::load(0))).lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn object() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/weir.bpf.o");
    let object = std::env::var_os("WEIR_BPF_OBJECT").map_or_else(built, PathBuf::from);
    assert!(object.exists(), "{} doesn't exist: build it with `cargo xtask build-ebpf`", object.display());
    object
}

impl Rig {
    /// `established`: the size of the tables of established flows; 0 leaves it.
    fn load(established: u32) -> Self {
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        if established != 0 {
            loader.map_max_entries(map::NAT_ESTABLISHED_V4, established);
            loader.map_max_entries(map::NAT_ESTABLISHED_V6, established);
        }
        let mut ebpf = loader.load_file(object()).unwrap();
        let xdp: &mut Xdp = ebpf.program_mut(program::XDP).unwrap().try_into().unwrap();
        xdp.load().unwrap();
        for name in [program::INGRESS, program::EGRESS] {
            let classifier: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            classifier.load().unwrap();
        }
        let mut take = |name: &str| ebpf.take_map(name).unwrap();
        Self {
            on: Interfaces { front: 0, back: 0, side: 0 },
            settings: take(map::SETTINGS).try_into().unwrap(),
            backends: take(map::BACKENDS).try_into().unwrap(),
            rings: take(map::RINGS).try_into().unwrap(),
            services_epoch: take(map::SERVICES_EPOCH).try_into().unwrap(),
            snat_addresses: take(map::SNAT_ADDRESSES).try_into().unwrap(),
            cursors: take(map::SNAT_CURSORS).try_into().unwrap(),
            syns: take(map::SYNS).try_into().unwrap(),
            hops: take("HOPS").try_into().unwrap(),
            answered: take("ANSWERED").try_into().unwrap(),
            service_stats: take(map::SERVICE_STATS).try_into().unwrap(),
            backend_stats: take(map::BACKEND_STATS).try_into().unwrap(),
            verdicts: take(map::VERDICTS).try_into().unwrap(),
            ways_out: take(map::WAYS_OUT).try_into().unwrap(),
            v4: OfFamily::take(&mut ebpf),
            v6: OfFamily::take(&mut ebpf),
            ebpf,
        }
    }

    fn reset(&mut self) {
        self.v4.clear();
        self.v6.clear();
        clear(&mut self.ways_out);
        for index in 0..USED {
            self.backends.set(index, Backend::FREE, 0).unwrap();
            self.cursors.set(index, 0, 0).unwrap();
            self.snat_addresses.set(index, AnyAddr::default(), 0).unwrap();
        }
        self.clear_stats();
        for index in 0..RING_USED {
            self.rings.set(index, 0, 0).unwrap();
        }
        for ifindex in [self.on.front, self.on.back] {
            self.ways_out.insert(ifindex, 1, 0).unwrap();
        }
    }

    /// Forgets the next hop of a backend, as if it had been looked up long ago.
    pub fn forget_hop(&mut self, index: u32) {
        let cpus = aya::util::nr_cpus().unwrap();
        self.hops.set(index, vec![[0; 5]; cpus].try_into().unwrap(), 0).unwrap();
    }

    /// Forgets how often clients were told that a packet is too big.
    pub fn forget_answers(&mut self) {
        let cpus = aya::util::nr_cpus().unwrap();
        self.answered.set(0, vec![[0; 2]; cpus].try_into().unwrap(), 0).unwrap();
    }

    /// Forgets the SYNs that other tests have sent.
    pub fn forget_syns(&mut self) {
        for place in 0..SYNS_LEN {
            if self.syns.get(&place, 0).unwrap() != 0 {
                self.syns.set(place, 0, 0).unwrap();
            }
        }
    }

    /// Forgets everything of a family but arrays.
    pub fn clear(&mut self, family: Family) {
        self.tables(family).clear();
    }

    pub fn clear_stats(&mut self) {
        let cpus = aya::util::nr_cpus().unwrap();
        for index in 0..USED {
            let zeros = || vec![Stats::default(); cpus].try_into().unwrap();
            self.service_stats.set(index, zeros(), 0).unwrap();
            self.backend_stats.set(index, zeros(), 0).unwrap();
        }
    }

    /// To change them, too: the services are looked up again.
    pub fn tables(&mut self, family: Family) -> &mut dyn Tables {
        let epoch = self.services_epoch.get(&0, 0).unwrap();
        self.services_epoch.set(0, epoch + 1, 0).unwrap();
        self.tables_unsaid(family)
    }

    /// The same, but the program goes by what it remembers of the services.
    pub fn tables_unsaid(&mut self, family: Family) -> &mut dyn Tables {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Lets XDP redirect to an interface, or not.
    pub fn set_way_out(&mut self, ifindex: u32, open: bool) {
        if open {
            self.ways_out.insert(ifindex, 1, 0).unwrap();
        } else {
            self.ways_out.remove(&ifindex).unwrap();
        }
    }

    pub fn service_stats(&self, index: u32) -> Stats {
        sum(&self.service_stats, index)
    }

    pub fn backend_stats(&self, index: u32) -> Stats {
        sum(&self.backend_stats, index)
    }

    /// What is counted on an interface, by place in `VERDICTS`.
    fn verdicts(&self, ifindex: u32) -> Vec<u64> {
        let total = |place| self.verdicts.get(&verdict_index(ifindex, place), 0).unwrap().iter().sum();
        (0..REASONS).map(total).collect()
    }

    /// Shows `frame`, come in through the interface `ifindex`, to a program; egress: going out
    /// through it.
    #[track_caller]
    pub fn run(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> Ran {
        let before = self.verdicts(ifindex);
        let (action, frame) = self.run_only(hook, ifindex, frame);
        let after = self.verdicts(ifindex);
        let counted = (0_u32..).zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after);
        let counted = counted.map(|(place, (before, after))| (place_name(place), after - before)).collect();
        Ran { action, frame, counted }
    }

    /// The same without a look at the counters.
    #[track_caller]
    pub fn run_only(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> (Action, Vec<u8>) {
        self.run_as(hook, &context(hook, ifindex, frame.len() as u32), frame)
    }

    /// The same with a context of one's own.
    #[track_caller]
    pub fn run_as(&self, hook: Hook, context: &[u8], frame: &[u8]) -> (Action, Vec<u8>) {
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            ..TestRunOptions::default()
        };
        let name = match hook {
            Hook::Xdp => program::XDP,
            Hook::Ingress => program::INGRESS,
            Hook::Egress => program::EGRESS,
        };
        let result = match self.ebpf.program(name).unwrap() {
            Program::Xdp(xdp) => xdp.test_run(options),
            Program::SchedClassifier(classifier) => classifier.test_run(options),
            _ => panic!("{name} is another kind of program"),
        };
        let result = result.unwrap_or_else(|error| panic!("{name} can't be run on {} bytes: {error}", frame.len()));
        out.truncate(result.data_size_out as usize);
        let action = match (hook, result.return_value) {
            (Hook::Xdp, 1) => Action::Drop,
            (Hook::Xdp, 2) => Action::Pass,
            (Hook::Xdp, 3) => Action::Tx,
            (Hook::Xdp, 4) => Action::Redirect,
            (Hook::Ingress | Hook::Egress, u32::MAX) => Action::Unspec,
            (Hook::Ingress | Hook::Egress, 2) => Action::Drop,
            (Hook::Ingress | Hook::Egress, 7) => Action::Redirect,
            (_, other) => Action::Other(other),
        };
        (action, out)
    }
}

/// `xdp_md` and `__sk_buff` as far as the kernel takes them.
pub fn context(hook: Hook, ifindex: u32, len: u32) -> Vec<u8> {
    let mut words = match hook {
        Hook::Xdp => vec![0; 6],
        Hook::Ingress | Hook::Egress => vec![0_u32; 48],
    };
    match hook {
        Hook::Xdp => (words[1], words[3]) = (len, ifindex),
        Hook::Ingress => (words[SKB_INGRESS_IFINDEX], words[SKB_IFINDEX]) = (ifindex, ifindex),
        Hook::Egress => words[SKB_IFINDEX] = ifindex,
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Places in `__sk_buff`, in words.
const SKB_INGRESS_IFINDEX: usize = 9;
const SKB_IFINDEX: usize = 10;

impl Ran {
    /// Fails unless the program did just that.
    #[track_caller]
    pub fn is(&self, action: Action, reason: Reason, frame: &[u8]) {
        self.is_counted(action, &[reason.name()], frame);
    }

    /// The same with everything that is counted, events included.
    #[track_caller]
    pub fn is_counted(&self, action: Action, counted: &[&'static str], frame: &[u8]) {
        let problems = self.differs(action, counted, Some(frame));
        assert!(problems.is_empty(), "{problems}");
    }

    /// Fails unless the program ended the frame here.
    #[track_caller]
    pub fn is_dropped(&self, reason: Reason) {
        let problems = self.differs(Action::Drop, &[reason.name()], None);
        assert!(problems.is_empty(), "{problems}");
    }

    /// What differs from this, in words; empty if nothing does.
    pub fn differs(&self, action: Action, counted: &[&'static str], frame: Option<&[u8]>) -> String {
        let mut problems = String::new();
        let wanted: BTreeMap<&str, u64> = counted.iter().map(|name| (*name, 1)).collect();
        if self.action != action || self.counted != wanted {
            write!(problems, "{:?} {:?}, but {action:?} {counted:?} is expected. ", self.action, self.counted).unwrap();
        }
        if let Some(frame) = frame.filter(|frame| *frame != self.frame) {
            let at =
                frame.iter().zip(&self.frame).position(|(a, b)| a != b).unwrap_or(frame.len().min(self.frame.len()));
            write!(
                problems,
                "The frame is\n{}but\n{}is expected: they differ at byte {at}.",
                hex(&self.frame),
                hex(frame)
            )
            .unwrap();
        }
        problems
    }
}

fn hex(frame: &[u8]) -> String {
    frame.chunks(16).enumerate().fold(String::new(), |mut text, (line, bytes)| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "  {:4}: {}", line * 16, bytes.join(" ")).unwrap();
        text
    })
}

fn place_name(place: u32) -> &'static str {
    match place {
        EVENT_ESTABLISHED_FULL => "established_full",
        EVENT_HALF_OPEN_STOLEN => "half_open_stolen",
        EVENT_CLOSED_REUSED => "closed_reused",
        EVENT_EXCEPTIONS_FULL => "exceptions_full",
        EVENT_HALF_OPEN_FULL => "half_open_full",
        EVENT_SEEN_FULL => "seen_full",
        EVENT_SYN_AGAIN => "syn_again",
        EVENT_TOO_BIG_UNSAID => "too_big_unsaid",
        place => {
            Reason::ALL.iter().find(|reason| **reason as u32 == place).map_or("a place without a name", |r| r.name())
        }
    }
}

fn sum(stats: &PerCpuArray<MapData, Stats>, index: u32) -> Stats {
    stats.get(&index, 0).unwrap().iter().fold(Stats::default(), |sum, stats| Stats {
        packets: sum.packets + stats.packets,
        bytes: sum.bytes + stats.bytes,
        connections: sum.connections + stats.connections,
        reply_packets: sum.reply_packets + stats.reply_packets,
        reply_bytes: sum.reply_bytes + stats.reply_bytes,
        refused: sum.refused + stats.refused,
    })
}
