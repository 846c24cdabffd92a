//! From cases to turns: which programs and services a case runs on, and what packets it sends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use lb_common::{
    bench::{Plan, name},
    flow::Family,
};

use crate::{
    cases::{Case, Kind, Mode, SOME, shown},
    frames, network,
    packet::Bench,
    stage::Stage,
    talk,
    turn::{Baseline, Target, Turn},
    wrapper::Wrapper,
};

/// Client addresses of 16M flows.
const CLIENTS_OF_A_CASE: u32 = 1 << 10;

/// The golden ratio of 2^32, made odd.
const STRIDE: u32 = 0x9e37_79b1;

/// Where everything settled is.
const SETTLED: usize = 0;

pub fn bench(ifindex: u32, cases: Vec<Case>) -> Result<Bench> {
    let bench = Bench {
        wrapper: Wrapper::load(ifindex, 0)?,
        stages: vec![Stage::load(ifindex)?],
        turns: Vec::new(),
        baselines: BTreeMap::new(),
    };
    let mut setup = Setup { ifindex, bench, few: None, services: BTreeMap::new(), flows: BTreeMap::new() };
    for case in cases {
        setup.add(case)?;
    }
    Ok(setup.bench)
}

struct Setup {
    ifindex: u32,
    bench: Bench,
    /// Where services are that have few exceptions.
    few: Option<usize>,
    /// Where each service is.
    services: BTreeMap<ServiceKey, (usize, SocketAddr)>,
    /// The open flows of `nat`, by family and number: their first client, and the place of what
    /// their backends send.
    flows: BTreeMap<(u8, u32), (u32, u32)>,
}

/// Mode, family, percent in transition, and the room that its exceptions take.
type ServiceKey = (&'static str, u8, u32, u32);

impl Setup {
    fn add(&mut self, case: Case) -> Result<()> {
        let family = case.family;
        let first_client = self.bench.turns.len() as u32 * CLIENTS_OF_A_CASE;
        match (case.mode, case.kind) {
            (_, Kind::Floor) => {
                let floor = if family == Family::V4 { name::FLOOR_V4 } else { name::FLOOR_V6 };
                self.add_clients(case, Target::Own(floor), network::stranger(family), first_client, 0)
            }
            (None, _) => self.add_clients(case, Target::Stage(SETTLED), network::stranger(family), first_client, 0),
            (Some(mode), Kind::Syn | Kind::Data) if mode.keeps_flows() => {
                let (place, vip) = self.service(mode, &case)?;
                let (first_client, first_reply) = self.open(&case, vip)?;
                self.add_clients(case, Target::Stage(place), vip, first_client, first_reply)
            }
            (Some(mode), Kind::Reply) => {
                let (place, vip) = self.service(mode, &case)?;
                let (_, first_reply) = self.open(&case, vip)?;
                self.add_backends(case, Target::Stage(place), first_reply)
            }
            (Some(mode), _) => {
                let (place, vip) = self.service(mode, &case)?;
                self.add_clients(case, Target::Stage(place), vip, first_client, 0)
            }
        }
    }

    /// The service that a case asks. What is settled shares a stage, and what has few exceptions;
    /// those of a million flows fill the tables, and each mode and family has its own then, so that
    /// none evicts those of another.
    fn service(&mut self, mode: &'static Mode, case: &Case) -> Result<(usize, SocketAddr)> {
        let room = if case.transition == 0 { 0 } else { case.flows.max(SOME) };
        let key = (mode.name, case.family.number(), case.transition, room);
        if let Some(service) = self.services.get(&key) {
            return Ok(*service);
        }
        let place = match self.few {
            _ if case.transition == 0 => SETTLED,
            Some(place) if room == SOME => place,
            _ => {
                self.bench.stages.push(Stage::load_for_few(self.ifindex)?);
                self.bench.stages.len() - 1
            }
        };
        if case.transition != 0 && room == SOME {
            self.few = Some(place);
        }
        let stage = self.bench.stages.get_mut(place).context("no such stage")?;
        let vip = stage.serve(mode, case.family, case.transition)?;
        self.services.insert(key, (place, vip));
        Ok((place, vip))
    }

    /// Opens as many flows of `nat` as the case has, once; their first client and their place in
    /// `REPLIES`.
    fn open(&mut self, case: &Case, vip: SocketAddr) -> Result<(u32, u32)> {
        let key = (case.family.number(), case.flows);
        if let Some(open) = self.flows.get(&key) {
            return Ok(*open);
        }
        let first_client = self.bench.turns.len() as u32 * CLIENTS_OF_A_CASE;
        eprintln!("opening {} flows of nat v{}", shown(case.flows), case.family.number());
        let stage = self.bench.stages.get(SETTLED).context("no such stage")?;
        let replies = talk::open(stage, case.family, vip, first_client, case.flows)?;
        // In the order in which the clients' packets come.
        let flow = |number: u32| replies.get((number.wrapping_mul(STRIDE) % case.flows) as usize).copied();
        let in_turn: Vec<_> = (0..case.flows).filter_map(flow).collect();
        let open = (first_client, self.bench.wrapper.keep(&in_turn)?);
        self.flows.insert(key, open);
        Ok(open)
    }

    fn add_clients(&mut self, case: Case, target: Target, to: SocketAddr, client: u32, reply: u32) -> Result<()> {
        let wrapper = match case.family {
            Family::V4 => name::FROM_CLIENTS_V4,
            Family::V6 => name::FROM_CLIENTS_V6,
        };
        let frame = frames::segment(case.kind, talk::client_of(case.family, client, 0), to)?;
        self.push(wrapper, case, target, plan(&case, &frame, reply)?);
        Ok(())
    }

    fn add_backends(&mut self, case: Case, target: Target, reply: u32) -> Result<()> {
        let wrapper = match case.family {
            Family::V4 => name::FROM_BACKENDS_V4,
            Family::V6 => name::FROM_BACKENDS_V6,
        };
        let (src, dst) = (network::backend(case.family, 1), (network::node(case.family), 0).into());
        let frame = frames::segment(case.kind, src, dst)?;
        self.push(wrapper, case, target, plan(&case, &frame, reply)?);
        Ok(())
    }

    fn push(&mut self, wrapper: &'static str, case: Case, target: Target, plan: Plan) {
        for baseline in Baseline::of(wrapper, &case) {
            let target = Target::Own(baseline.target);
            let turn = || Turn { wrapper, target, plan, case: None, ns: Vec::new() };
            self.bench.baselines.entry(baseline).or_insert_with(turn);
        }
        self.bench.turns.push(Turn { wrapper, target, plan, case: Some(case), ns: Vec::new() });
    }
}

/// The packets of a case, from its first one.
pub fn plan(case: &Case, frame: &[u8], first_reply: u32) -> Result<Plan> {
    let (src, _, _) = frames::parse(frame)?;
    Ok(Plan {
        flow_mask: case.flows - 1,
        stride: STRIDE,
        client: match src {
            IpAddr::V4(ip) => ip.to_bits(),
            IpAddr::V6(ip) => ip.to_bits() as u32,
        },
        first_reply,
        ..Plan::of_frame(frame).context("a frame without an Ethernet header")?
    })
}
