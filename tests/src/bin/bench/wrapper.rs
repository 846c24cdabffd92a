//! The bench's own object: wrappers, floor, null.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, Xdp, XdpMode},
};
use lb_common::bench::{Plan, Reply, name};
use nix::{sys::time::TimeValLike, time::ClockId};

use crate::{
    network,
    stage::{context, object, take, xdp},
};

pub struct Wrapper {
    ebpf: Ebpf,
    ifindex: u32,
    plan: Array<MapData, Plan>,
    replies: Array<MapData, Reply>,
    target: ProgramArray<MapData>,
    arrived: PerCpuArray<MapData, u64>,
    replies_used: u32,
}

/// What a run came to.
pub struct Ran {
    /// Processor time a packet.
    pub ns: f64,
    /// What the target returned for the last packet, and how long that was then.
    pub action: u32,
    pub len: u32,
}

impl Wrapper {
    /// Loads everything. The wrappers are attached as well, to interfaces without traffic: the
    /// kernel lets programs that are in use run at once, and makes preparations of 25 ms for any
    /// other.
    ///
    /// `redirect_to`: the interface to which `redirect` sends.
    pub fn load(ifindex: u32, redirect_to: u32) -> Result<Self> {
        let object = object("bench.bpf.o")?;
        let mut ebpf = EbpfLoader::new()
            .override_global(name::REDIRECT_TO, &redirect_to, true)
            .load_file(&object)
            .with_context(|| format!("can't load {}", object.display()))?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            xdp(&mut ebpf, &name)?.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        for (number, wrapper) in name::WRAPPERS.into_iter().enumerate() {
            let idle = network::idle(&format!("idle{number}"))?;
            xdp(&mut ebpf, wrapper)?.attach_to_if_index(idle, XdpMode::Driver).context("can't attach to a veth")?;
        }
        Ok(Self {
            ifindex,
            plan: take(&mut ebpf, name::PLAN)?,
            replies: take(&mut ebpf, name::REPLIES)?,
            target: take(&mut ebpf, name::TARGET)?,
            arrived: take(&mut ebpf, name::ARRIVED)?,
            replies_used: 0,
            ebpf,
        })
    }

    /// Keeps what backends send; returns the place of the first.
    pub fn keep(&mut self, replies: &[Reply]) -> Result<u32> {
        let first = self.replies_used;
        for (place, reply) in (first..).zip(replies) {
            self.replies.set(place, reply, 0).context("can't write to REPLIES")?;
        }
        self.replies_used += replies.len() as u32;
        Ok(first)
    }

    /// A program, to attach it.
    pub fn program_mut(&mut self, name: &str) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, name)
    }

    pub fn program(&self, name: &str) -> Result<&Xdp> {
        let program = self.ebpf.program(name).with_context(|| format!("the object has no program {name}"))?;
        program.try_into().with_context(|| format!("{name} is not an XDP program"))
    }

    /// The same, a program of this object.
    pub fn aim_at_own(&mut self, name: &str) -> Result<()> {
        let target = self.program(name)?.fd()?.try_clone()?;
        self.aim(&target)
    }

    /// What the wrappers call from now on.
    pub fn aim(&mut self, target: &ProgramFd) -> Result<()> {
        self.target.set(0, target, 0).context("can't write to TARGET")
    }

    /// Sends `packets` packets of `plan` through the wrapper `name`; the plan then says which comes
    /// next.
    pub fn run(&mut self, name: &str, plan: &mut Plan, packets: u32) -> Result<Ran> {
        self.plan.set(0, *plan, 0).context("can't write to PLAN")?;
        // The wrapper fills it.
        let frame = vec![0; plan.len as usize];
        let mut out = vec![0; plan.len as usize + 64];
        let context_in = context(self.ifindex, plan.len as u32);
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context_in),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let before = processor_time()?;
        let ran = self.program(name)?.test_run(options).with_context(|| format!("can't run {name}"))?;
        let time = processor_time()?.saturating_sub(before);
        plan.next += u64::from(packets);
        let next = self.plan.get(&0, 0).context("can't read PLAN")?.next;
        if next != plan.next {
            bail!(
                "{name} was run {packets} times and has made {} packets",
                next.wrapping_sub(plan.next - u64::from(packets))
            );
        }
        Ok(Ran { ns: time.as_nanos() as f64 / f64::from(packets), action: ran.return_value, len: ran.data_size_out })
    }
}

impl Wrapper {
    /// Sends `packets` frames of `plan` through the wrapper `name`, whose target says `XDP_TX`: out
    /// through the interface, as live frames. Returns the time of one as the kernel counts it,
    /// without preparations and without the time of other processes.
    pub fn send_live(&mut self, name: &str, plan: &Plan, packets: u32) -> Result<Duration> {
        self.plan.set(0, *plan, 0).context("can't write to PLAN")?;
        let frame = vec![0; plan.len as usize];
        let context_in = context(self.ifindex, plan.len as u32);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context_in),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
            ..TestRunOptions::default()
        };
        let ran = self.program(name)?.test_run(options).with_context(|| format!("can't send live frames by {name}"))?;
        Ok(ran.duration)
    }

    /// Packets that `sink` has seen.
    pub fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0).context("can't read ARRIVED")?.iter().sum())
    }
}

/// As a driver polls.
const LIVE_BATCH: u32 = 64;

/// Of this thread, in user space and kernel: others' work on the processor doesn't count. It is
/// finer than the whole nanoseconds a packet that the kernel reports.
fn processor_time() -> Result<Duration> {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now().context("no clock of this thread's processor time")?;
    Ok(Duration::from_nanos(time.num_nanoseconds().unsigned_abs()))
}
