use std::{cell::RefCell, rc::Rc};

use lb_common::flow::Family;
use weir_tests::model::{
    Outcome, Packet, System, World,
    check::{cases, check, seed},
};

use crate::{bed, kernel::Kernel, sandbox::sandbox};

/// Of each family.
const CASES: u32 = 500;

#[test]
fn no_established_flow_is_moved_while_its_backend_serves() {
    sandbox(async |sandbox| {
        let on = bed::make();
        for family in Family::BOTH {
            let directory = sandbox.bpffs().join(format!("v{}", family.number()));
            std::fs::create_dir(&directory).unwrap();
            let kernel = Rc::new(RefCell::new(Kernel::load(&directory, family, on)));
            let judged = check(cases(CASES), seed(), |_| {
                kernel.borrow_mut().reset();
                Shared(kernel.clone())
            });
            match judged {
                Ok(stats) => println!("{family:?}: {stats}"),
                Err(violation) => panic!("{family:?}: {violation}"),
            }
        }
    });
}

/// The one that is loaded, again for each plan.
struct Shared(Rc<RefCell<Kernel>>);

impl System for Shared {
    fn send(&mut self, packet: Packet) -> Outcome {
        self.0.borrow_mut().send(packet)
    }

    fn wait(&mut self, seconds: u64) {
        self.0.borrow_mut().wait(seconds);
    }

    fn reconcile(&mut self, world: &World) {
        self.0.borrow_mut().reconcile(world);
    }

    fn step(&mut self) -> bool {
        self.0.borrow_mut().step()
    }

    fn restart(&mut self, world: &World) {
        self.0.borrow_mut().restart(world);
    }

    fn explain(&mut self, flow: u8) -> String {
        self.0.borrow_mut().explain(flow)
    }
}
