//! Remembers what was copied last, so that the next pass sees what has changed.

use std::{collections::HashMap, io};

use aya::maps::{MapError, MapType};

use crate::dataplane::raw::bytes::Bytes;

pub struct Copied {
    places: CopiedPlaces,
    /// The value of each entry, at the entry's place.
    values: Vec<u8>,
    /// Whether this pass has met the entry at each place.
    met: Vec<bool>,
    /// The size of a value in bytes.
    value: usize,
}

enum CopiedPlaces {
    /// The place of each entry by its array index. Place 0 stands for "not copied": such an entry
    /// is all zeros, and so is a new array.
    Array(Vec<u32>),
    Hash(HashMap<Vec<u8>, u32>),
}

/// How an entry compares with its last copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// An array entry that is and was all zeros.
    Nothing,
    /// Unchanged since it was copied.
    Same,
    /// Changed since it was copied; holds the copied value.
    Changed(&'a [u8]),
    Appeared,
}

impl Copied {
    pub fn of(old: &Bytes<'_>) -> Result<Self, MapError> {
        let places = match old.info.map_type()? {
            MapType::Array | MapType::PerCpuArray => CopiedPlaces::Array(vec![0; old.info.max_entries() as usize]),
            _ => CopiedPlaces::Hash(HashMap::new()),
        };
        // An array entry that was not copied was zero: place 0 holds a zero value.
        Ok(Self { places, values: vec![0; old.value], met: vec![true], value: old.value })
    }

    pub fn len(&self) -> usize {
        match &self.places {
            CopiedPlaces::Array(_) => self.met.len() - 1,
            CopiedPlaces::Hash(places) => places.len(),
        }
    }

    /// Begins another pass.
    pub fn look_again(&mut self) {
        self.met.fill(false);
    }

    /// Compares an entry with its last copy, and marks it as met.
    pub fn find(&mut self, key: &[u8], value: &[u8]) -> Found<'_> {
        let place = match &self.places {
            CopiedPlaces::Array(places) => {
                index(key).and_then(|index| places.get(index)).copied().unwrap_or(0) as usize
            }
            CopiedPlaces::Hash(places) => match places.get(key) {
                Some(place) => *place as usize,
                None => return Found::Appeared,
            },
        };
        self.met[place] = true;
        let before = &self.values[place * self.value..][..self.value];
        match before == value {
            true if place == 0 => Found::Nothing,
            true => Found::Same,
            false => Found::Changed(before),
        }
    }

    /// Remembers a copied entry.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) {
        let next = self.met.len() as u32;
        let mut nowhere = 0;
        let place = match &mut self.places {
            CopiedPlaces::Array(places) => index(key).and_then(|index| places.get_mut(index)).unwrap_or(&mut nowhere),
            CopiedPlaces::Hash(places) => places.entry(key.to_vec()).or_insert(0),
        };
        if *place == 0 {
            *place = next;
            self.met.push(true);
            self.values.extend_from_slice(value);
        } else {
            self.values[*place as usize * self.value..][..self.value].copy_from_slice(value);
        }
    }

    /// Whether a map of `max_entries` has room for all copied entries; `key` is the one inserted
    /// last.
    pub fn fits(&self, key: &[u8], max_entries: u32) -> bool {
        match &self.places {
            CopiedPlaces::Array(_) => index(key).is_some_and(|index| index < max_entries as usize),
            CopiedPlaces::Hash(places) => places.len() <= max_entries as usize,
        }
    }

    /// The entries that this pass has not met and that are really gone, with their copied values.
    /// They are forgotten.
    pub fn take_gone(&mut self, old: &Bytes<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let CopiedPlaces::Hash(places) = &mut self.places else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        let mut value = vec![0; self.value];
        for (key, place) in places.iter().filter(|(_, place)| !self.met[**place as usize]) {
            // A scan may miss an entry that moves meanwhile, so look it up.
            if !old.find(key, &mut value)? {
                gone.push((key.clone(), self.values[*place as usize * self.value..][..self.value].to_vec()));
            }
        }
        for (key, _) in &gone {
            places.remove(key);
        }
        Ok(gone)
    }
}

fn index(key: &[u8]) -> Option<usize> {
    Some(u32::from_ne_bytes(key.try_into().ok()?) as usize)
}
