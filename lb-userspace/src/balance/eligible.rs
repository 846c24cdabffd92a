//! Which backends get new flows.

use crate::state::{AdminState, Health};

/// Whether a backend with this much weight gets new flows.
///
/// Without probes, the health is ignored and the backend counts as up. With probes, the backend
/// needs a success first: a new backend, or every backend on a cold start, gets no flow before its
/// first verdict. A backend that never answers gets its verdict after `fall` probes.
pub fn is_eligible(weight: u32, admin: AdminState, health: Health, is_probed: bool) -> bool {
    weight > 0 && admin == AdminState::Active && (!is_probed || health == Health::Up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_backend_that_is_up_and_has_weight_gets_flows() {
        use AdminState::{Active, Disabled, Draining};
        for (weight, admin, health, is_probed, expected) in [
            (1, Active, Health::Up, true, true),
            (1, Active, Health::Unknown, true, false),
            (1, Active, Health::Down, true, false),
            (1, Active, Health::Unknown, false, true),
            (1, Active, Health::Down, false, true),
            (0, Active, Health::Up, true, false),
            (1, Draining, Health::Up, true, false),
            (1, Disabled, Health::Unknown, false, false),
        ] {
            assert_eq!(
                is_eligible(weight, admin, health, is_probed),
                expected,
                "{weight} {admin:?} {health:?} probed: {is_probed}"
            );
        }
    }
}
