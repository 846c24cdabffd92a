use super::{super::limits::KEYS, *};
use crate::model::limits::Limit;

/// A service in one line, with a VIP for each of `vips`, and `backends` backends of both families.
fn one(name: &str, vips: &[String], ring: u32, backends: u32, more: &str) -> String {
    let backends: Vec<String> = (0..backends)
        .map(|n| format!("{{ address: 10.{}.{}.{}, port: 80 }}", 1 + (n >> 16), n >> 8 & 255, n & 255))
        .collect();
    let (vips, backends) = (vips.join(", "), backends.join(", "));
    format!("  - {{ name: {name}, vips: [{vips}], port: 80, ringSize: {ring}, {more} backends: [{backends}] }}\n")
}

fn vips(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("192.{}.{}.{}", 1 + (n >> 16), n >> 8 & 255, n & 255)).collect()
}

fn vip(number: u32) -> Vec<String> {
    vips(number..number + 1)
}

fn with(limits: &str, services: &str) -> String {
    format!("{HEAD}limits: {{ {limits} }}\nservices:\n{services}")
}

fn limits(text: &str) -> Limits {
    parse(text, Path::new("weir.yaml")).unwrap().node.limits
}

#[test]
fn limits_have_their_defaults_and_each_can_be_raised_to_its_bound_and_lowered() {
    let default = Limits { backends: 16_384, ring_slots: 4_194_304, services: 16_384, addresses: 32_768 };
    assert_eq!(limits(&format!("{HEAD}services: []\n")), default);
    assert_eq!(limits(&with("", "  []\n")), default);
    assert_eq!(
        limits(&with("backends: 65536, ringSlots: 16777216, services: 65536, addresses: 262144", "  []\n")),
        Limits { backends: 65_536, ring_slots: 16_777_216, services: 65_536, addresses: 262_144 }
    );
    assert_eq!(limits(&with("backends: 65535", "  []\n")), Limits { backends: 65_535, ..default });
    assert_eq!(
        limits(&with("backends: 1024, ringSlots: 1024, services: 1024, addresses: 1024", "  []\n")),
        Limits { backends: 1024, ring_slots: 1024, services: 1024, addresses: 1024 }
    );
}

#[test]
fn limit_beyond_its_bound_is_refused_with_the_reason() {
    check(&[
        (
            "all too large",
            with("backends: 65537, ringSlots: 16777217, services: 65537, addresses: 262145", "  []\n"),
            &[
                (3, "limits.backends", "1024 to 65536 (65535 backends"),
                (3, "limits.ringSlots", "1024 to 16777216 (that is 192 MiB"),
                (3, "limits.services", "1024 to 65536 (each has counters on every CPU"),
                (3, "limits.addresses", "1024 to 262144 (as many as"),
            ],
        ),
        ("too small", with("ringSlots: 0", "  []\n"), &[(3, "limits.ringSlots", "must be 1024 to")]),
        ("no number", with("services: many", "  []\n"), &[(3, "limits.services", "must be a number")]),
        ("unknown", with("slots: 4194304", "  []\n"), &[(3, "limits.slots", "unknown key")]),
        ("list", format!("{HEAD}limits: []\nservices: []\n"), &[(3, "limits", "must be a mapping")]),
    ]);
    assert!(Limit::ALL.iter().zip(KEYS).all(|(limit, key)| limit.key() == format!("limits.{key}")));
}

#[test]
fn what_does_not_fit_names_the_limit_what_it_allows_what_is_needed_and_what_to_set() {
    let web = one("web", &vip(1), 20_483, 1023, "");
    let shop = one("shop", &vip(2), 23, 1, "");
    let rings =
        |sizes: [u32; 2]| format!("{}{}", one("a", &vip(1), sizes[0], 1, ""), one("b", &vip(2), sizes[1], 1, ""));
    let kept = |backends| one("kept", &vip(1), 20_507, backends, "source: keep,");
    check(&[
        ("as many backends as fit", with("backends: 1024", &web), &[]),
        (
            "one backend more",
            with("backends: 1024", &format!("{web}{shop}")),
            &[(
                3,
                "limits.backends",
                "allows 1024 backends (one is Weir's own), 1025 are needed: set it to 1025 or more",
            )],
        ),
        ("as many slots as fit", with("ringSlots: 1024", &rings([509, 503])), &[]),
        (
            "more slots",
            with("ringSlots: 1024", &rings([509, 521])),
            &[(
                3,
                "limits.ringSlots",
                "allows 1024 ring slots (one is Weir's own), 1031 are needed: set it to 1031 or more",
            )],
        ),
        (
            "one slot more, of Weir's own",
            with("ringSlots: 1030", &rings([509, 521])),
            &[(3, "limits.ringSlots", "1031 are needed")],
        ),
        ("as many VIPs as fit", with("services: 1024", &one("web", &vips(0..1024), 23, 1, "")), &[]),
        (
            "one VIP more",
            with("services: 1024", &one("web", &vips(0..1025), 23, 1, "")),
            &[(
                3,
                "limits.services",
                "allows 1024 VIPs and ports of each family, 1025 of IPv4 are needed: set it to 1025 or more",
            )],
        ),
        ("as many addresses as fit", with("addresses: 1024", &kept(1023)), &[]),
        (
            "one address more",
            with("addresses: 1024", &kept(1024)),
            &[(3, "limits.addresses", "1025 of IPv4 are needed: set it to 1025 or more")],
        ),
        (
            "the node's SNAT addresses count too",
            with("addresses: 1024", &format!("{}snat: {{ addresses: [198.51.100.1] }}\n", kept(1023))),
            &[(3, "limits.addresses", "1025 of IPv4 are needed")],
        ),
        ("backends that see this node don't", with("addresses: 1024", &one("web", &vip(1), 20_507, 1024, "")), &[]),
    ]);
}

#[test]
fn default_that_does_not_suffice_is_named_at_the_service_with_which_it_no_longer_does() {
    let many = one("many", &vip(1), 655_373, 16_384, "");
    let rings: String = (1..=5).map(|n| one(&format!("s{n}"), &vip(n), 1_048_573, 1, "")).collect();
    let more: String = (1..=17).map(|n| one(&format!("s{n}"), &vip(n), 1_048_573, 1, "")).collect();
    check(&[
        (
            "backends",
            format!("{HEAD}services:\n{many}"),
            &[(4, "limits.backends", "allows 16384 backends (one is Weir's own), 16385 are needed: set it to 16385")],
        ),
        (
            "slots",
            format!("{HEAD}services:\n{rings}"),
            &[(8, "limits.ringSlots", "allows 4194304 ring slots (one is Weir's own), 5242866 are needed")],
        ),
        (
            "more slots than can be",
            format!("{HEAD}services:\n{more}"),
            &[(8, "limits.ringSlots", "it can be 16777216 at most, so choose a smaller ringSize")],
        ),
        (
            "together with other mistakes",
            format!("{HEAD}services:\n{rings}limits: {{ backends: 1 }}\nxdpMode: fast\n"),
            &[(9, "limits.backends", "must be 1024 to"), (10, "xdpMode", "must be one of")],
        ),
        (
            "all that do not suffice at once",
            format!("{HEAD}services:\n{rings}{}", one("vips", &vips(100..16_600), 23, 1, "")),
            &[(8, "limits.ringSlots", "5242889 are needed"), (9, "limits.services", "16505 of IPv4 are needed")],
        ),
        ("raised, it suffices", with("ringSlots: 8388608", &rings), &[]),
    ]);
}
