//! Converts whole entries; for per-CPU maps, the values of every CPU.

use crate::dataplane::{
    migrate::{
        convert::{Conversion, Cut},
        merge::Merge,
    },
    raw::bytes::Bytes,
};

/// How the entries of the old map are converted and merged into the new one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    pub key: Conversion,
    pub value: Conversion,
    pub merge: Merge,
    /// How many entries of an array are copied, if the others are not in use; `None`: all.
    pub kept: Option<u32>,
}

impl Way {
    /// Whether the entry of an array is left behind, because nothing uses it.
    pub fn leaves(&self, key: &[u8]) -> bool {
        let index = key.try_into().map(u32::from_ne_bytes);
        self.kept.is_some_and(|kept| index.is_ok_and(|index| index >= kept))
    }
}

pub struct Converter<'a> {
    way: &'a Way,
    key: Vec<u8>,
    value: Vec<u8>,
    /// The distance in bytes between the values of two CPUs, before and after.
    each: (usize, usize),
}

impl<'a> Converter<'a> {
    pub fn new(way: &'a Way, old: &Bytes<'_>, new: &Bytes<'_>) -> Self {
        Self { way, key: vec![0; new.key], value: vec![0; new.value], each: (old.each, new.each) }
    }

    pub fn key(&mut self, key: &[u8]) -> Result<&[u8], Cut> {
        self.way.key.apply(key, &mut self.key)?;
        Ok(&self.key)
    }

    pub fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(&[u8], &[u8]), Cut> {
        self.way.key.apply(key, &mut self.key)?;
        let cpus = value.chunks_exact(self.each.0).zip(self.value.chunks_exact_mut(self.each.1));
        cpus.into_iter().try_for_each(|(old, new)| self.way.value.apply(old, new))?;
        Ok((&self.key, &self.value))
    }
}
