//! Tables of cases: a name, a frame, what becomes of it.

use lb_common::verdict::Reason;

use crate::rig::{Action, Hook, Rig};

pub struct Case {
    pub name: String,
    pub frame: Vec<u8>,
    pub action: Action,
    pub reason: Reason,
    /// The frame that is expected; `None` for one that is dropped.
    pub out: Option<Vec<u8>>,
}

impl Case {
    /// Left to the stack as it is.
    pub fn passes(name: impl Into<String>, frame: Vec<u8>, reason: Reason) -> Self {
        Self { name: name.into(), action: Action::Pass, reason, out: Some(frame.clone()), frame }
    }

    pub fn drops(name: impl Into<String>, frame: Vec<u8>, reason: Reason) -> Self {
        Self { name: name.into(), action: Action::Drop, reason, out: None, frame }
    }

    /// Answered through the interface on which it came.
    pub fn answers(name: impl Into<String>, frame: Vec<u8>, reason: Reason, out: Vec<u8>) -> Self {
        Self { name: name.into(), action: Action::Tx, reason, out: Some(out), frame }
    }
}

impl Rig {
    /// Shows every frame to XDP on the interface towards the clients; fails with all that is not as
    /// expected.
    #[track_caller]
    pub fn check_at_xdp(&mut self, cases: &[Case]) {
        let mut problems = String::new();
        for case in cases {
            let ran = self.run(Hook::Xdp, self.on.front, &case.frame);
            let differs = ran.differs(case.action, &[case.reason.name()], case.out.as_deref());
            if !differs.is_empty() {
                problems += &format!("\n{}: {differs}", case.name);
            }
        }
        assert!(problems.is_empty(), "{problems}");
    }

    /// Shows every frame to the program at TC ingress, which leaves what XDP leaves or answers, and
    /// counts nothing then.
    #[track_caller]
    pub fn check_left_alone_at_tc(&mut self, cases: &[Case]) {
        let mut problems = String::new();
        for case in cases.iter().filter(|case| case.action == Action::Pass) {
            for (hook, ifindex) in [(Hook::Ingress, self.on.front), (Hook::Egress, self.on.back)] {
                let ran = self.run(hook, ifindex, &case.frame);
                let differs = ran.differs(Action::Unspec, &[], Some(&case.frame));
                if !differs.is_empty() {
                    problems += &format!("\n{} at {hook:?}: {differs}", case.name);
                }
            }
        }
        assert!(problems.is_empty(), "{problems}");
    }
}
