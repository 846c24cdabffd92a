//! What is measured: modes, families, kinds of packets, numbers of flows, shares of slots in
//! transition.

use std::fmt;

use lb_common::{
    backend::{WAY_DSR_L2, WAY_IPIP_V4, WAY_IPIP_V6, WAY_NAT},
    flow::Family,
    service::{MODE_DSR_IPIP, MODE_DSR_L2, MODE_NAT},
};
use serde::Serialize;

/// A mode as the maps say it.
#[derive(PartialEq, Eq)]
pub struct Mode {
    pub name: &'static str,
    pub service: u8,
    pub way_v4: u8,
    pub way_v6: u8,
    /// Whether it puts a header in front, which the wrapper must take away again.
    pub encapsulates: bool,
}

impl Mode {
    /// Whether every flow has an entry, which must be there before its packets are sent.
    pub const fn keeps_flows(&self) -> bool {
        self.service == MODE_NAT
    }
}

pub const DSR: [Mode; 2] = [
    Mode { name: "dsr-l2", service: MODE_DSR_L2, way_v4: WAY_DSR_L2, way_v6: WAY_DSR_L2, encapsulates: false },
    Mode { name: "dsr-ipip", service: MODE_DSR_IPIP, way_v4: WAY_IPIP_V4, way_v6: WAY_IPIP_V6, encapsulates: true },
];
const NAT: Mode = Mode { name: "nat", service: MODE_NAT, way_v4: WAY_NAT, way_v6: WAY_NAT, encapsulates: false };

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Syn,
    Data,
    Reply,
    NotVip,
    Floor,
}

/// One row of the table.
#[derive(Clone, Copy)]
pub struct Case {
    /// None: the floor, and what is not a VIP.
    pub mode: Option<&'static Mode>,
    pub family: Family,
    pub kind: Kind,
    pub flows: u32,
    /// Percent of the slots.
    pub transition: u32,
}

const FEW: u32 = 1 << 10;
pub const SOME: u32 = 1 << 16;
pub const MILLION: u32 = 1 << 20;
const ALL: [u32; 5] = [1, FEW, SOME, MILLION, 1 << 24];
const QUICK: [u32; 3] = [1, FEW, SOME];

const NAT_FLOWS: [u32; 2] = [FEW, SOME];
const TRANSITIONS: [u32; 2] = [0, 10];

impl Case {
    pub fn floor(family: Family) -> Self {
        Self { mode: None, family, kind: Kind::Floor, flows: SOME, transition: 0 }
    }

    pub fn all(quick: bool) -> Vec<Self> {
        let flows = if quick { QUICK.as_slice() } else { ALL.as_slice() };
        let mut cases = Vec::new();
        for family in Family::BOTH {
            cases.push(Self::floor(family));
            cases.push(Self { kind: Kind::NotVip, ..Self::floor(family) });
            for mode in &DSR {
                for transition in TRANSITIONS {
                    for kind in [Kind::Data, Kind::Syn] {
                        let of = |flows: &u32| Self { mode: Some(mode), family, kind, flows: *flows, transition };
                        cases.extend(flows.iter().map(of));
                    }
                }
            }
            for kind in [Kind::Data, Kind::Reply] {
                let of = |flows| Self { mode: Some(&NAT), family, kind, flows, transition: 0 };
                cases.extend(NAT_FLOWS.map(of));
            }
        }
        cases
    }

    pub fn mode_name(&self) -> &'static str {
        self.mode.map_or("none", |mode| mode.name)
    }

    pub fn encapsulates(&self) -> bool {
        self.kind == Kind::Floor || self.mode.is_some_and(|mode| mode.encapsulates)
    }
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Syn => "syn",
            Kind::Data => "data",
            Kind::Reply => "reply",
            Kind::NotVip => "not-vip",
            Kind::Floor => "floor",
        }
    }
}

/// As one types it after `--only`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, family, kind) = (self.mode_name(), self.family.number(), self.kind.name());
        write!(f, "{mode} v{family} {kind} {} {}%", shown(self.flows), self.transition)
    }
}

/// 1, 1k, 64k, 1M, 16M.
pub fn shown(flows: u32) -> String {
    match flows {
        0..FEW => flows.to_string(),
        FEW..MILLION => format!("{}k", flows >> 10),
        MILLION.. => format!("{}M", flows >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_the_issue_is_there_once() {
        let cases = Case::all(false);
        // Each DSR mode in two families, two kinds, five numbers of flows and two shares; nat in
        // two families, two directions and two numbers.
        assert_eq!(cases.len(), DSR.len() * 40 + 8 + 2 + 2);
        let names: std::collections::BTreeSet<String> = cases.iter().map(Case::to_string).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains("dsr-l2 v6 data 16M 10%") && names.contains("none v4 not-vip 64k 0%"), "{names:?}");
        let flows: Vec<String> = ALL.map(shown).to_vec();
        assert_eq!(flows, ["1", "1k", "64k", "1M", "16M"]);
    }
}
