use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::flow::Family;
use proptest::prelude::*;

use super::*;

const SEED: [u8; 16] = *b"seed of the test";

fn backends(weights: &[u32]) -> Vec<(SocketAddr, u32)> {
    (1_u32..)
        .zip(weights)
        .map(|(n, weight)| (format!("10.1.{}.{}:8080", n / 256, n % 256).parse().unwrap(), *weight))
        .collect()
}

fn ring(size: u32, backends: Vec<(SocketAddr, u32)>) -> Ring {
    Ring::new(Declared::new(SEED, size, backends))
}

fn owners(ring: &Ring, down: &[SocketAddr]) -> Vec<Option<SocketAddr>> {
    let declared = &ring.declared().backends;
    let is_eligible: Vec<bool> =
        declared.iter().map(|(address, weight)| *weight > 0 && !down.contains(address)).collect();
    ring.owners(is_eligible).map(|owner| owner.map(|owner| declared[owner as usize].0)).collect()
}

fn shares(owners: &[Option<SocketAddr>]) -> BTreeMap<SocketAddr, usize> {
    let mut shares = BTreeMap::new();
    for owner in owners.iter().flatten() {
        *shares.entry(*owner).or_default() += 1;
    }
    shares
}

/// The tables were made by `tests/data/maglev.py`, a different implementation, written from the
/// paper in another language.
#[test]
fn tables_are_those_of_an_independent_implementation() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/maglev.json")).unwrap();
    let cases = golden.as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let seed = case["seed"].as_str().unwrap().as_bytes().try_into().unwrap();
        let declared = case["backends"].as_array().unwrap().iter().map(|backend| {
            (backend["address"].as_str().unwrap().parse().unwrap(), backend["weight"].as_u64().unwrap() as u32)
        });
        let size = case["size"].as_u64().unwrap() as u32;
        let ring = Ring::new(Declared::new(seed, size, declared));
        let expected: Vec<SocketAddr> =
            case["table"].as_array().unwrap().iter().map(|owner| owner.as_str().unwrap().parse().unwrap()).collect();
        let got: Vec<SocketAddr> = owners(&ring, &[]).into_iter().flatten().collect();
        assert_eq!(got, expected, "{}", case["name"]);
        for moved in case["next"].as_array().unwrap() {
            let down: Vec<SocketAddr> = moved["down"]
                .as_array()
                .unwrap()
                .iter()
                .map(|owner| owner.as_str().unwrap().parse().unwrap())
                .collect();
            let expected: Vec<Option<SocketAddr>> = moved["owners"]
                .as_array()
                .unwrap()
                .iter()
                .map(|owner| owner.as_str().map(|owner| owner.parse().unwrap()))
                .collect();
            assert_eq!(owners(&ring, &down), expected, "{} without {down:?}", case["name"]);
        }
    }
}

#[test]
fn each_of_a_thousand_backends_has_its_share() {
    let shares = shares(&owners(&ring(16381, backends(&[1; 1000])), &[]));
    assert_eq!(shares.len(), 1000);
    assert!(shares.values().all(|share| (16..=17).contains(share)));
}

#[test]
fn backend_without_weight_owns_nothing_and_is_no_candidate() {
    let ring = ring(1021, backends(&[1, 0, 1]));
    let [first, without, third] = [0, 1, 2].map(|n| ring.declared().backends[n].0);
    let table = shares(&owners(&ring, &[]));
    assert!(!table.contains_key(&without) && table.len() == 2);
    assert_eq!(shares(&owners(&ring, &[first])), BTreeMap::from([(third, 1021)]));
    assert!(owners(&ring, &[first, third]).iter().all(Option::is_none));
}

#[test]
fn ring_without_any_weight_has_no_owner() {
    let ring = ring(101, backends(&[0, 0]));
    assert_eq!(owners(&ring, &[]), vec![None; 101]);
}

#[test]
fn another_seed_gives_another_ring() {
    let one = owners(&ring(1021, backends(&[1; 4])), &[]);
    let other = owners(&Ring::new(Declared::new([9; 16], 1021, backends(&[1; 4]))), &[]);
    let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
    assert!((150..360).contains(&same), "{same} of 1021 slots have the same owner");
}

#[test]
fn digest_names_what_differs() {
    let ring = ring(251, backends(&[1; 4]));
    let reordered = Ring::new(Declared::new(SEED, 251, backends(&[1; 4]).into_iter().rev()));
    let of = |ring: &Ring, down: &[SocketAddr]| {
        let text = digest::digest(ring.declared(), Family::V4, owners(ring, down));
        let (told, owners) = text.split_once('-').unwrap();
        (told.to_owned(), owners.to_owned())
    };
    let first = ring.declared().backends[0].0;
    assert_eq!(of(&ring, &[]), of(&reordered, &[]));
    assert_eq!(of(&ring, &[]).0, of(&ring, &[first]).0);
    assert_ne!(of(&ring, &[]).1, of(&ring, &[first]).1);
    assert_ne!(of(&ring, &[]).0, of(&super::tests::ring(251, backends(&[1, 1, 1, 2])), &[]).0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_slot_has_an_owner_and_every_share_follows_its_weight(
        weights in proptest::collection::vec(0..12_u32, 1..40),
    ) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let size = 1021;
        let ring = ring(size, backends(&weights));
        let owners = owners(&ring, &[]);
        prop_assert!(owners.iter().all(Option::is_some));
        let shares = shares(&owners);
        let all: u32 = weights.iter().sum();
        for (address, weight) in &ring.declared().backends {
            let fair = f64::from(size) * f64::from(*weight) / f64::from(all);
            let share = shares.get(address).copied().unwrap_or(0) as f64;
            // Webster's method deviates from the quota by more than one only in contrived cases.
            prop_assert!((share - fair).abs() < 2.0, "{address} has {share} slots, fair are {fair}");
        }
    }

    #[test]
    fn order_of_the_file_does_not_matter(weights in proptest::collection::vec(1..5_u32, 2..12), rotate in 0..12_usize) {
        let mut other = backends(&weights);
        let by = rotate % other.len();
        other.rotate_left(by);
        prop_assert_eq!(owners(&ring(251, backends(&weights)), &[]), owners(&ring(251, other), &[]));
    }

    /// Section 5.3 of the paper: with a hundred times as many slots as backends, few slots of other
    /// backends move when one backend comes or goes.
    #[test]
    fn backend_that_comes_or_goes_moves_few_slots_of_others(n in 5..30_usize, which in 0..30_usize) {
        let all = backends(&vec![1; n]);
        let mut without = all.clone();
        let gone = without.remove(which % n).0;
        let before = owners(&ring(4093, all), &[]);
        let after = owners(&ring(4093, without), &[]);
        let pairs = before.iter().zip(&after);
        let moved = pairs.filter(|(before, after)| **before != Some(gone) && before != after).count();
        prop_assert!(moved < 4093 / 12, "{moved} of 4093 slots of others moved");
    }

    #[test]
    fn only_slots_of_who_is_down_move_and_they_return(
        weights in proptest::collection::vec(1..5_u32, 3..15),
        down in 0..15_usize,
        also in 0..15_usize,
    ) {
        let ring = ring(1021, backends(&weights));
        let address = |n: usize| ring.declared().backends[n % weights.len()].0;
        let before = owners(&ring, &[]);
        let one = owners(&ring, &[address(down)]);
        let two = owners(&ring, &[address(down), address(also)]);
        for ((before, one), two) in before.iter().zip(&one).zip(&two) {
            prop_assert!(before == one || *before == Some(address(down)));
            prop_assert!(*one != Some(address(down)) && *two != Some(address(down)) && *two != Some(address(also)));
            // Of the slots that had moved, only the slots that went to the second backend move
            // again.
            prop_assert!(one == two || *one == Some(address(also)));
        }
    }

    #[test]
    fn slots_of_who_is_down_spread_by_weight(weights in proptest::collection::vec(1..5_u32, 4..8)) {
        let ring = ring(16381, backends(&weights));
        let down = ring.declared().backends[0].0;
        let (before, after) = (owners(&ring, &[]), owners(&ring, &[down]));
        let moved: Vec<Option<SocketAddr>> =
            before.iter().zip(&after).filter(|(before, _)| **before == Some(down)).map(|(_, after)| *after).collect();
        let others: u32 = weights.iter().skip(1).sum();
        let shares = shares(&moved);
        for (address, weight) in ring.declared().backends.iter().skip(1) {
            let fair = moved.len() as f64 * f64::from(*weight) / f64::from(others);
            let share = shares.get(address).copied().unwrap_or(0) as f64;
            // Binomial: five standard deviations.
            prop_assert!((share - fair).abs() < 5.0 * fair.sqrt() + 5.0, "{address} has {share} of the moved slots, \
                fair are {fair}");
        }
    }
}
