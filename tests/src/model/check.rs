//! Random plans against a system, with a seed that is printed, and the first failure made short.

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::{Plan, Stats, System, plan, run};

/// Events of the longest plans.
const EVENTS: usize = 100;
/// How many attempts to make a failure short, unless `WEIR_MODEL_SHRINKS` says another number.
const SHRINKS: u32 = 20_000;

/// Runs `cases` random plans, each against what `system` gives; the first that breaks the promise,
/// made short, is the error.
pub fn check<S: System>(cases: u32, seed: u64, mut system: impl FnMut(&Plan) -> S) -> Result<Stats, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: number("WEIR_MODEL_SHRINKS", SHRINKS),
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (mut stats, system) = (Stats::default(), std::cell::RefCell::new(&mut system));
    let total = std::cell::RefCell::new(&mut stats);
    let judged = runner.run(&plan(EVENTS), |plan| {
        let mut system = (system.borrow_mut())(&plan);
        let stats = run(&mut system, &plan).map_err(|violation| TestCaseError::fail(violation.to_string()))?;
        total.borrow_mut().add(&stats);
        Ok(())
    });
    match judged {
        Ok(()) => Ok(stats),
        Err(TestError::Fail(reason, plan)) => Err(format!("onDead {:?}\n{reason}", plan.on_dead)),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

/// How many plans to run: `WEIR_MODEL_CASES`, or as usual.
pub fn cases(usual: u32) -> u32 {
    number("WEIR_MODEL_CASES", usual)
}

fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).map_or(usual, |number| number.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// `WEIR_MODEL_SEED`, or a random one; printed, so that a failure can be seen again.
pub fn seed() -> u64 {
    let given = std::env::var("WEIR_MODEL_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("WEIR_MODEL_SEED is no number"));
    println!("WEIR_MODEL_SEED={seed}");
    seed
}
