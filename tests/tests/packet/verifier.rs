//! What the kernel's verifier thinks of the programs.

use aya::programs::Program;
use lb_common::limits::program;

use crate::rig::rig;

/// The kernel gives up at a million; other kernels walk a little farther than this one.
const MOST: u32 = 600_000;

#[test]
fn programs_stay_well_below_the_verifiers_limit() {
    rig(|rig| {
        for name in [program::XDP, program::INGRESS, program::EGRESS] {
            let info = match rig.ebpf.program(name).unwrap() {
                Program::Xdp(xdp) => xdp.info(),
                Program::SchedClassifier(classifier) => classifier.info(),
                _ => panic!("{name} is another kind of program"),
            };
            let verified = info.unwrap().verified_instruction_count().expect("this kernel counts them");
            println!("{name}: {verified} instructions verified");
            assert!(verified < MOST, "{name}: {verified} instructions verified");
        }
    });
}
