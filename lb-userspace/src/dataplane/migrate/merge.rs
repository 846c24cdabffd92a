//! Two programs write for a moment, each into its own map: the old one, on a hook that is not
//! switched yet, and the new one. What both have done to an entry since it was copied goes together
//! here.

use super::{
    convert::{number, set_number},
    layout::Type,
};

/// How the two go together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    numbers: Vec<(std::ops::Range<usize>, Rule)>,
}

/// For a number that both have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// Counters: what the old one added is added.
    Sum,
    /// Flags: the bits that the old one changed.
    Bits,
    /// Times: the later one.
    Later,
    /// The new program's.
    New,
}

impl Merge {
    /// For counters, in `value`.
    pub fn counters(value: &Type) -> Self {
        Self::by(value, |_| Rule::Sum)
    }

    /// For words of which every bit is a flag, or changed by nobody while programs hand over:
    /// slots.
    pub fn words(value: &Type) -> Self {
        Self::by(value, |_| Rule::Bits)
    }

    /// For anything else: what a number is, its name says.
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

    /// The same for values of `each` bytes, one behind the other: those of all CPUs.
    pub fn apply_each(&self, base: &[u8], old: &[u8], new: &mut [u8], each: usize) {
        let cpus = base.chunks_exact(each).zip(old.chunks_exact(each)).zip(new.chunks_exact_mut(each));
        cpus.for_each(|((base, old), new)| self.apply(base, old, new));
    }

    /// Brings into `new`, the new program's value, what the old program made of `base` since it was
    /// copied: `old`. All three in the new layout.
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
