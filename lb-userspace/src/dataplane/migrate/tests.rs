use std::mem::{offset_of, size_of};

use lb_common::{
    backend::Backend,
    flow::{Flow, V6Addr},
    limits::map,
    nat::NatEntry,
    settings::Settings,
};
use proptest::prelude::*;

use super::{
    btf::{Btf, BtfError},
    convert::{Conversion, EntryPart, number, set_number},
    layout::{Layout, Member, Type, differences},
    merge::Merge,
};
use crate::dataplane::load::OBJECT;

const U16: Type = Type::Int { size: 2, signed: false };
const U32: Type = Type::Int { size: 4, signed: false };
const U64: Type = Type::Int { size: 8, signed: false };

/// A struct of these members, one after the other.
fn record(members: &[(&str, Type)]) -> Type {
    let mut offset = 0;
    let mut placed = Vec::new();
    for (name, ty) in members {
        placed.push(Member { name: (*name).to_owned(), offset, ty: ty.clone() });
        offset += ty.size();
    }
    Type::Struct { size: offset, members: placed }
}

fn array(element: Type, len: usize) -> Type {
    Type::Array { element: Box::new(element), len }
}

/// The bytes of these numbers, each with its width.
fn entry(numbers: &[(u64, usize)]) -> Vec<u8> {
    let mut entry = Vec::new();
    for (value, size) in numbers {
        let mut bytes = vec![0; *size];
        assert!(set_number(&mut bytes, *value));
        entry.extend(bytes);
    }
    entry
}

fn convert(old: &Type, new: &Type, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let conversion = Conversion::new(old, new, EntryPart::Value).map_err(|error| error.to_string())?;
    let mut converted = vec![0xff; new.size()];
    conversion.apply(bytes, &mut converted).map_err(|error| error.to_string())?;
    Ok(converted)
}

#[test]
fn members_find_their_place_by_name_new_ones_are_zero_and_gone_ones_dropped() {
    let flow = record(&[("src", U32), ("port_be", U16)]);
    let wide_flow = record(&[("port_be", U16), ("src", U32)]);
    let old = record(&[("gone", U16), ("to", flow), ("stats", U16), ("last_seen_ns", U64)]);
    let new = record(&[("last_seen_ns", U64), ("stats", U32), ("fresh", U64), ("to", wide_flow)]);
    let before = entry(&[(9, 2), (0x0a00_0001, 4), (80, 2), (7, 2), (1 << 40, 8)]);
    let after = entry(&[(1 << 40, 8), (7, 4), (0, 8), (80, 2), (0x0a00_0001, 4)]);
    assert_eq!(convert(&old, &new, &before), Ok(after.clone()));
    // And back: only members without a place in between are lost.
    assert_eq!(convert(&new, &old, &after), Ok(entry(&[(0, 2), (0x0a00_0001, 4), (80, 2), (7, 2), (1 << 40, 8)])));
    assert_eq!(differences(&old, &new), "+fresh, stats u16 -> u32, -gone");
}

#[test]
fn number_that_does_not_fit_is_refused_by_its_path() {
    let old = record(&[("inner", record(&[("count", U32)]))]);
    let new = record(&[("inner", record(&[("count", U16)]))]);
    assert_eq!(convert(&old, &new, &entry(&[(0xffff, 4)])), Ok(entry(&[(0xffff, 2)])));
    let refused = convert(&old, &new, &entry(&[(0x1_0000, 4)])).unwrap_err();
    assert!(refused.contains("inner.count") && refused.contains("0x10000"), "{refused}");
}

#[test]
fn array_grows_with_zeros_and_shrinks_by_nothing_but_zeros() {
    let pair = record(&[("first", U16), ("count", U16)]);
    let (short, long) = (record(&[("ranges", array(pair.clone(), 1))]), record(&[("ranges", array(pair, 2))]));
    let one = entry(&[(1024, 2), (100, 2)]);
    let two = entry(&[(1024, 2), (100, 2), (0, 2), (0, 2)]);
    assert_eq!(convert(&short, &long, &one), Ok(two.clone()));
    assert_eq!(convert(&long, &short, &two), Ok(one));
    let refused = convert(&long, &short, &entry(&[(1024, 2), (100, 2), (0, 2), (1, 2)])).unwrap_err();
    assert!(refused.contains("ranges"), "{refused}");
}

#[test]
fn what_only_fills_is_not_copied_and_may_become_anything() {
    let old = record(&[("a", U32), ("reserved", array(U16, 2))]);
    let new = record(&[("reserved", U64), ("a", U32)]);
    assert_eq!(convert(&old, &new, &entry(&[(5, 4), (1, 2), (2, 2)])), Ok(entry(&[(0, 8), (5, 4)])));
}

#[test]
fn what_can_mean_two_things_is_refused() {
    let signed = Type::Int { size: 4, signed: true };
    let refuses = |old: Type, new: Type, part: EntryPart| {
        let (old, new) = (record(&[("port_be", old)]), record(&[("port_be", new)]));
        let refused = Conversion::new(&old, &new, part).unwrap_err().to_string();
        assert!(refused.contains("port_be"), "{refused}");
    };
    refuses(U16, U32, EntryPart::Value);
    refuses(signed, U64, EntryPart::Value);
    refuses(U32, array(U16, 2), EntryPart::Value);
    refuses(U32, record(&[("a", U32)]), EntryPart::Value);
    // Two keys would become one.
    let gone = Conversion::new(&record(&[("a", U32), ("b", U32)]), &record(&[("a", U32)]), EntryPart::Key);
    assert!(gone.unwrap_err().to_string().contains("b: this part of the key is gone"));
}

/// Some members from a pool of names, in some order, each with a width.
fn members() -> impl Strategy<Value = Vec<(&'static str, Type)>> {
    let names: Vec<&str> = vec!["a", "b", "c", "d", "e", "f"];
    let some = proptest::sample::subsequence(names, 1..=6).prop_shuffle();
    some.prop_flat_map(|names| {
        let len = names.len();
        (Just(names), proptest::collection::vec(prop_oneof![Just(U16), Just(U32), Just(U64)], len))
            .prop_map(|(names, types)| names.into_iter().zip(types).collect())
    })
}

proptest! {
    #[test]
    fn every_shared_member_keeps_its_value_there_and_back(
        old in members(),
        new in members(),
        values in proptest::collection::vec(0..0x1_0000_u64, 6),
    ) {
        let (was, is) = (record(&old), record(&new));
        let numbers: Vec<_> = old.iter().zip(&values).map(|((_, ty), value)| (*value, ty.size())).collect();
        let there = convert(&was, &is, &entry(&numbers)).unwrap();
        let back = convert(&is, &was, &there).unwrap();
        for (leaf, (value, _)) in was.leaves().iter().zip(&numbers) {
            let is_shared = new.iter().any(|(name, _)| *name == leaf.name);
            prop_assert_eq!(number(&back[leaf.offset..leaf.offset + leaf.size]), if is_shared { *value } else { 0 });
        }
        for leaf in is.leaves() {
            let was_at = old.iter().position(|(name, _)| *name == leaf.name);
            let expected = was_at.map_or(0, |at| values[at]);
            prop_assert_eq!(number(&there[leaf.offset..leaf.offset + leaf.size]), expected, "{}", leaf.name);
        }
    }

    #[test]
    fn counters_of_both_programs_add_up(base in 0..u64::MAX / 4, old in 0..1_u64 << 30, new in 0..1_u64 << 30) {
        let merge = Merge::counters(&record(&[("packets", U64)]));
        let mut merged = entry(&[(base + new, 8)]);
        merge.apply(&entry(&[(base, 8)]), &entry(&[(base + old, 8)]), &mut merged);
        prop_assert_eq!(merged, entry(&[(base + old + new, 8)]));
    }
}

#[test]
fn entry_that_both_programs_changed_keeps_what_either_did() {
    let ty = record(&[("flags", U32), ("sequence", U32), ("backend", U32), ("last_seen_ns", U64)]);
    let merge = Merge::entries(&ty);
    let value = |flags, sequence, backend, seen| entry(&[(flags, 4), (sequence, 4), (backend, 4), (seen, 8)]);
    let merged = |old: Vec<u8>, mut new: Vec<u8>| {
        merge.apply(&value(0b0110, 1, 7, 100), &old, &mut new);
        new
    };
    // Only one program has changed the number: its value counts.
    assert_eq!(merged(value(0b0110, 5, 7, 90), value(0b0110, 1, 7, 100)), value(0b0110, 5, 7, 90));
    assert_eq!(merged(value(0b0110, 1, 7, 100), value(0b0111, 6, 8, 101)), value(0b0111, 6, 8, 101));
    // Both have changed it: the bits of each, the later time, otherwise the new program's number.
    // The old program has set 8 and cleared 2, the new one set 1.
    assert_eq!(merged(value(0b1100, 5, 9, 300), value(0b0111, 6, 8, 200)), value(0b1101, 6, 8, 300));
}

#[test]
fn slots_that_both_programs_marked_have_both_marks() {
    let merge = Merge::words(&U64);
    let mut new = entry(&[(0x5_0000_0000_0007, 8)]);
    merge.apply(&entry(&[(0x1_0000_0000_0007, 8)]), &entry(&[(0x9_0000_0000_0007, 8)]), &mut new);
    assert_eq!(number(&new), 0xd_0000_0000_0007);
}

/// The layout of a map's entries, from the BTF of the object.
fn of_object(name: &str) -> Layout {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let aya_obj::Map::Btf(map) = &object.maps[name] else { panic!("{name} has no BTF") };
    let bytes = object.btf.as_ref().unwrap().to_bytes();
    let btf = Btf::parse(&bytes).unwrap();
    let layout = |id| btf.layout(id).unwrap();
    Layout { key: layout(map.def.btf_key_type_id), value: layout(map.def.btf_value_type_id) }
}

#[test]
fn btf_of_the_object_says_what_the_compiler_says() {
    let place = |ty: &Type, name: &str| {
        let Type::Struct { members, .. } = ty else { panic!("{ty:?}") };
        members.iter().find(|member| member.name == name).map(|member| (member.offset, member.ty.size()))
    };
    let flows = of_object(map::NAT_ESTABLISHED_V6);
    type Entry = NatEntry<V6Addr>;
    assert_eq!((flows.key.size(), flows.value.size()), (size_of::<Flow<V6Addr>>(), size_of::<Entry>()));
    assert_eq!(place(&flows.key, "src_port_be"), Some((offset_of!(Flow<V6Addr>, src_port_be), 2)));
    assert_eq!(place(&flows.value, "to"), Some((offset_of!(Entry, to), size_of::<Flow<V6Addr>>())));
    assert_eq!(place(&flows.value, "last_seen_ns"), Some((offset_of!(Entry, last_seen_ns), 8)));
    let backends = of_object(map::BACKENDS);
    assert_eq!(place(&backends.value, "snat_count"), Some((offset_of!(Backend, snat_count), 2)));
    assert_eq!(place(&backends.value, "address"), Some((offset_of!(Backend, address), 16)));
    let settings = of_object(map::SETTINGS);
    assert_eq!(place(&settings.value, "flags"), Some((offset_of!(Settings, flags), 4)));
    assert_eq!(of_object(map::RINGS).value, U64);
}

#[test]
fn every_pinned_map_with_entries_is_described_and_can_become_itself() {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    for name in map::PINNED.into_iter().filter(|name| object.maps[*name].key_size() > 0) {
        let Layout { key, value } = of_object(name);
        assert_eq!(key.size(), object.maps[name].key_size() as usize, "{name}");
        assert_eq!(value.size(), object.maps[name].value_size() as usize, "{name}");
        assert!(
            Conversion::new(&key, &key, EntryPart::Key).is_ok()
                && Conversion::new(&value, &value, EntryPart::Value).is_ok()
        );
    }
}

#[test]
fn damaged_btf_is_an_error() {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let bytes = object.btf.as_ref().unwrap().to_bytes();
    for len in (0..bytes.len()).step_by(97) {
        if let Ok(btf) = Btf::parse(&bytes[..len]) {
            assert!((1..2000).any(|id| btf.layout(id).is_err()));
        }
    }
    assert_eq!(Btf::parse(b"what is this?").err(), Some(BtfError::Damaged));
}
