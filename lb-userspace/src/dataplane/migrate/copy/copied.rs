//! What was copied last, so that the next pass sees what has changed.

use std::{collections::HashMap, io};

use aya::maps::{MapError, MapType};

use crate::dataplane::raw::bytes::Bytes;

pub struct Copied {
    places: Places,
    /// The value of each entry, at its place.
    values: Vec<u8>,
    /// Whether this pass has met the entry.
    met: Vec<bool>,
    /// Bytes of a value.
    value: usize,
}

enum Places {
    /// By index; 0 is none, so the place after the entry's. An entry of zeros is none: a new array
    /// holds zeros already.
    Array(Vec<u32>),
    Hash(HashMap<Vec<u8>, u32>),
}

/// What a pass has met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// Zeros in an array, as they were.
    Nothing,
    /// As it was copied.
    Same,
    /// Since it was copied; with what was copied.
    Changed(&'a [u8]),
    Appeared,
}

impl Copied {
    pub fn of(old: &Bytes<'_>) -> Result<Self, MapError> {
        let places = match old.info.map_type()? {
            MapType::Array | MapType::PerCpuArray => Places::Array(vec![0; old.info.max_entries() as usize]),
            _ => Places::Hash(HashMap::new()),
        };
        // An array's entry that was not copied was zero: place 0.
        Ok(Self { places, values: vec![0; old.value], met: vec![true], value: old.value })
    }

    pub fn len(&self) -> usize {
        match &self.places {
            Places::Array(_) => self.met.len() - 1,
            Places::Hash(places) => places.len(),
        }
    }

    /// Begins another pass.
    pub fn look_again(&mut self) {
        self.met.fill(false);
    }

    /// Compares an entry with what was copied of it, and takes it for met.
    pub fn find(&mut self, key: &[u8], value: &[u8]) -> Found<'_> {
        let place = match &self.places {
            Places::Array(places) => index(key).and_then(|index| places.get(index)).copied().unwrap_or(0) as usize,
            Places::Hash(places) => match places.get(key) {
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

    /// Notes what was copied.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) {
        let next = self.met.len() as u32;
        let mut nowhere = 0;
        let place = match &mut self.places {
            Places::Array(places) => index(key).and_then(|index| places.get_mut(index)).unwrap_or(&mut nowhere),
            Places::Hash(places) => places.entry(key.to_vec()).or_insert(0),
        };
        if *place == 0 {
            *place = next;
            self.met.push(true);
            self.values.extend_from_slice(value);
        } else {
            self.values[*place as usize * self.value..][..self.value].copy_from_slice(value);
        }
    }

    /// Whether a map with room for so many entries takes this one after the others.
    pub fn fits(&self, key: &[u8], max_entries: u32) -> bool {
        match &self.places {
            Places::Array(_) => index(key).is_some_and(|index| index < max_entries as usize),
            Places::Hash(places) => places.len() <= max_entries as usize,
        }
    }

    /// The entries that this pass has not met and that are gone indeed, with what was copied of
    /// them. They are forgotten.
    pub fn take_gone(&mut self, old: &Bytes<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let Places::Hash(places) = &mut self.places else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        let mut value = vec![0; self.value];
        for (key, place) in places.iter().filter(|(_, place)| !self.met[**place as usize]) {
            // A scan may miss what is moved meanwhile.
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
