use super::{
    Rule, Rules,
    check::{cases, check, seed},
};

#[test]
fn no_established_flow_is_moved_while_its_backend_serves() {
    match check(cases(5_000), seed(), |_| Rules::new(None)) {
        Ok(stats) => println!("{stats}"),
        Err(violation) => panic!("{violation}"),
    }
}

/// That the check above can fail, and that no rule is one too many.
#[test]
fn without_any_one_rule_some_flow_is_moved() {
    let seed = seed();
    let is_needed = |rule: &Rule| check(cases(60_000), seed, |_| Rules::new(Some(*rule))).is_err();
    let needless: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| !is_needed(rule)).collect();
    assert!(needless.is_empty(), "nothing is lost without {needless:?}");
}
