//! Settings made by the CLI, which override the file; kept in the state directory until they are
//! removed.

mod set;
mod store;

use lb_common::flow::Family;

pub use set::{Override, Overrides};
pub use store::StateDir;

use crate::{
    model::{Backend, Service},
    state::{AdminState, BackendId, Origin},
};

/// The settings that result from the file and the CLI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effective {
    pub weight: u32,
    pub weight_from: Origin,
    pub admin: AdminState,
    pub admin_from: Origin,
}

/// A drain set by the CLI overrides `active`. It does not override `disabled` in the file, which
/// ends the flows.
pub fn effective(backend: &Backend, set: Override) -> Effective {
    let (admin, admin_from) = match (backend.state, set.drain) {
        (AdminState::Active, true) => (AdminState::Draining, Origin::Cli),
        (state, _) => (state, Origin::File),
    };
    let (weight, weight_from) = match set.weight {
        Some(weight) => (weight, Origin::Cli),
        None => (backend.weight, Origin::File),
    };
    Effective { weight, weight_from, admin, admin_from }
}

/// A family of the service's VIPs, `IPv4` or `IPv6`, that has backends, but all of them with weight
/// 0. The file must not contain such weights, so the CLI must not set them.
pub fn weightless_family(service: &Service, overrides: &Overrides) -> Option<&'static str> {
    let is_weightless = |family: &Family| {
        let weight = |backend: &Backend| {
            effective(backend, overrides.of(&BackendId { service: service.name.clone(), address: backend.address }))
                .weight
        };
        let mut backends = service.backends.iter().filter(|one| Family::of(&one.address.ip()) == *family).peekable();
        service.vips.iter().any(|vip| Family::of(vip) == *family)
            && backends.peek().is_some()
            && backends.all(|backend| weight(backend) == 0)
    };
    Family::BOTH.into_iter().find(is_weightless).map(Family::name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{model::Config, state::ServiceName};

    fn config(backends: &str) -> Config {
        let text = format!(
            "version: 1\ninterfaces: [eth0]\nservices:\n  - {{ name: web, vips: [192.0.2.1, \"2001:db8::1\"], port: \
            80, backends: [{backends}] }}\n"
        );
        crate::config::parse(&text, Path::new("weir.yaml")).unwrap()
    }

    fn both_families() -> Config {
        config(
            "{ address: 10.0.0.1, port: 80, weight: 3 }, { address: 10.0.0.2, port: 80, state: disabled }, { address: \
            \"fd02::1\", port: 80, state: draining }",
        )
    }

    fn id(address: &str) -> BackendId {
        BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() }
    }

    #[test]
    fn what_was_set_holds_over_the_file_except_over_a_stronger_state() {
        let [v4, disabled, v6] = ["10.0.0.1:80", "10.0.0.2:80", "[fd02::1]:80"].map(id);
        let mut overrides = Overrides::default();
        for backend in [&v4, &disabled, &v6] {
            assert!(overrides.set_drain(backend, true));
        }
        assert!(overrides.set_weight(&v4, Some(9)));
        let config = both_families();
        let row = |id: &BackendId| {
            let one = effective(config.backend(id).unwrap(), overrides.of(id));
            (one.admin.name(), one.admin_from.name(), one.weight, one.weight_from.name())
        };
        assert_eq!(row(&v4), ("draining", "cli", 9, "cli"));
        assert_eq!(row(&disabled), ("disabled", "file", 1, "file"));
        assert_eq!(row(&v6), ("draining", "file", 1, "file"));
    }

    #[test]
    fn what_is_taken_back_leaves_nothing_behind() {
        let backend = id("10.0.0.1:80");
        let mut overrides = Overrides::default();
        assert!(!overrides.set_drain(&backend, false));
        assert!(overrides.set_drain(&backend, true) && !overrides.set_drain(&backend, true));
        assert!(overrides.set_weight(&backend, Some(0)));
        assert!(overrides.set_drain(&backend, false) && overrides.set_weight(&backend, None));
        assert_eq!(overrides, Overrides::default());
    }

    #[test]
    fn what_was_set_is_forgotten_once_the_backend_has_left_and_drained() {
        let [stays, drains, gone] = ["10.0.0.1:80", "10.0.0.8:80", "10.0.0.9:80"].map(id);
        let mut overrides: Overrides = [&stays, &drains, &gone]
            .map(|id| (id.clone(), Override { drain: true, weight: None }))
            .into_iter()
            .collect();
        assert_eq!(
            overrides.forget_gone(&both_families(), |id| *id == drains),
            std::collections::BTreeSet::from([gone])
        );
        assert_eq!(overrides.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&stays, &drains]);
    }

    #[test]
    fn weights_that_leave_a_family_without_any_are_found() {
        let config = both_families();
        let mut overrides = Overrides::default();
        assert_eq!(weightless_family(&config.services[0], &overrides), None);
        overrides.set_weight(&id("10.0.0.1:80"), Some(0));
        assert_eq!(weightless_family(&config.services[0], &overrides), None);
        overrides.set_weight(&id("[fd02::1]:80"), Some(0));
        assert_eq!(weightless_family(&config.services[0], &overrides), Some("IPv6"));
    }
}
