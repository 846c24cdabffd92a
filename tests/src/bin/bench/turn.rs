//! One turn: packets through a wrapper to a target, and whether the target did with them what it
//! should.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    bench::{Plan, name},
    verdict::Reason,
};

use crate::{
    cases::{Case, Kind},
    stage::{Stage, action},
    wrapper::{Ran, Wrapper},
};

pub struct Turn {
    pub wrapper: &'static str,
    pub target: Target,
    pub plan: Plan,
    /// None for what tells the wrapper's own cost.
    pub case: Option<Case>,
    /// Nanoseconds a packet, wrapper included, one for each round.
    pub ns: Vec<f64>,
}

#[derive(Clone, Copy)]
pub enum Target {
    /// Weir, as loaded there.
    Stage(usize),
    /// A program of the bench's own object.
    Own(&'static str),
}

/// What the wrapper alone costs depends on the wrapper, on whether it has something to strip, and,
/// where it reads what to send, on how much that is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Baseline {
    pub wrapper: &'static str,
    pub target: &'static str,
    replies: u32,
}

impl Baseline {
    /// What is subtracted from a case, and what tells how much of that is the target's own.
    pub fn of(wrapper: &'static str, case: &Case) -> [Self; 2] {
        let targets = if case.encapsulates() { [name::PUSH, name::PUSH_THRICE] } else { [name::NULL, name::NULL] };
        let replies = if case.kind == Kind::Reply { case.flows } else { 0 };
        targets.map(|target| Self { wrapper, target, replies })
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.wrapper, self.target)?;
        if self.replies == 0 { Ok(()) } else { write!(f, " ({} flows)", crate::cases::shown(self.replies)) }
    }
}

/// Packets before those that count, at the most.
const WARM_UP_MOST: u32 = 1 << 17;

impl Turn {
    /// Sends packets and notes what they cost.
    pub fn take(&mut self, wrapper: &mut Wrapper, stages: &[Stage], packets: u32) -> Result<()> {
        // The caches forget what others have left there, and get what this case uses, as far as it
        // fits.
        let flows = self.case.map_or(0, |case| case.flows);
        self.send(wrapper, stages, flows.clamp(packets / 8, WARM_UP_MOST.max(packets / 8)))?;
        let ran = self.send(wrapper, stages, packets)?;
        self.ns.push(ran.ns);
        Ok(())
    }

    pub fn send(&mut self, wrapper: &mut Wrapper, stages: &[Stage], packets: u32) -> Result<Ran> {
        let stage = match self.target {
            Target::Own(name) => {
                wrapper.aim_at_own(name)?;
                None
            }
            Target::Stage(place) => {
                let stage = stages.get(place).context("no such stage")?;
                wrapper.aim(stage.program()?.fd()?)?;
                Some(stage)
            }
        };
        let kind = self.case.map_or(Kind::Floor, |case| case.kind);
        let counted = || stage.map_or(Ok(0), |stage| stage.counted(reason_of(kind)));
        let before = counted()?;
        let ran = wrapper.run(self.wrapper, &mut self.plan, packets)?;
        let forwarded = counted()? - before;

        let what = self.case.map_or_else(|| self.wrapper.to_owned(), |case| case.to_string());
        if stage.is_some() && forwarded != u64::from(packets) {
            bail!("{what}: {forwarded} of {packets} packets were counted as {}", reason_of(kind).name());
        }
        let action = if kind == Kind::NotVip { action::PASS } else { action::TX };
        ensure!(ran.action == action, "{what}: the program returned {}, not {action}", ran.action);
        let is_longer = u64::from(ran.len) > self.plan.len;
        let is_to_be = self.case.map_or(is_longer, |case| case.encapsulates());
        ensure!(is_longer == is_to_be, "{what}: {} bytes became {}", self.plan.len, ran.len);
        Ok(ran)
    }
}

/// What Weir counts for a packet of this kind. (The floor counts nothing.)
const fn reason_of(kind: Kind) -> Reason {
    match kind {
        Kind::Syn | Kind::Data => Reason::ToBackend,
        Kind::Reply => Reason::ToClient,
        Kind::NotVip | Kind::Floor => Reason::NotVip,
    }
}
