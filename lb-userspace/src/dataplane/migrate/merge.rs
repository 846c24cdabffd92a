//! During the switch two programs write, each into its own map: the old program on hooks that are
//! not switched yet, and the new one on the others. This merges what both have done to an entry
//! since it was copied.

use super::{
    convert::{number, set_number},
    layout::Type,
};

/// How the values of both programs are merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    numbers: Vec<(std::ops::Range<usize>, Rule)>,
}

/// The rule for a number that both programs have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// Counters: adds what the old program added.
    Sum,
    /// Flags: takes the bits that the old program changed.
    Bits,
    /// Times: takes the later one.
    Later,
    /// Keeps the new program's number.
    New,
}

impl Merge {
    /// For values made of counters.
    pub fn counters(value: &Type) -> Self {
        Self::by(value, |_| Rule::Sum)
    }

    /// For slots: words in which every bit is a flag, or is changed by no one during the handover.
    pub fn words(value: &Type) -> Self {
        Self::by(value, |_| Rule::Bits)
    }

    /// For anything else: the name of a number decides its rule.
    pub fn entries(value: &Type) -> Self {
        Self::by(value, |name| match name {
            "flags" => Rule::Bits,
            name if name.ends_with("_ns") => Rule::Later,
            _ => Rule::New,
        })
    }

    fn by(value: &Type, rule: impl Fn(&str) -> Rule) -> Self {
        let leaves = value.leaves().into_iter().filter(|leaf| leaf.size <= 8);
        Self { numbers: leaves.map(|leaf| (leaf.offset..leaf.offset + leaf.size, rule(&leaf.name))).collect() }
    }

    /// Applies the merge to the values of all CPUs, which follow each other every `each` bytes.
    pub fn apply_each(&self, base: &[u8], old: &[u8], new: &mut [u8], each: usize) {
        let cpus = base.chunks_exact(each).zip(old.chunks_exact(each)).zip(new.chunks_exact_mut(each));
        cpus.for_each(|((base, old), new)| self.apply(base, old, new));
    }

    /// Merges into `new`, the new program's value, what the old program has changed since the copy:
    /// the difference between `base`, the copied value, and `old`. All three are in the new layout.
    pub fn apply(&self, base: &[u8], old: &[u8], new: &mut [u8]) {
        for (place, rule) in &self.numbers {
            let number = |bytes: &[u8]| number(&bytes[place.clone()]);
            let (was, old, now) = (number(base), number(old), number(new));
            if old == was {
                continue;
            }
            let merged = match rule {
                Rule::Sum => now.wrapping_add(old.wrapping_sub(was)),
                _ if now == was => old,
                Rule::Bits => now & !(was ^ old) | old & (was ^ old),
                Rule::Later => now.max(old),
                Rule::New => now,
            };
            let width = 8 * (place.len() as u32);
            let merged = if width < u64::BITS { merged & ((1 << width) - 1) } else { merged };
            let _fits = set_number(&mut new[place.clone()], merged);
        }
    }
}
