//! Converts entries from one layout to another, member by member and by name. No code knows the
//! version of either side, so upgrades and downgrades work alike: a new member is zero, a removed
//! member is dropped, and a number may become wider, or narrower if its value fits.

use super::layout::{Type, inside, is_filler};

/// How to convert entries of one layout to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversion {
    steps: Vec<Step>,
    old: usize,
    new: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Copy {
        from: usize,
        to: usize,
        len: usize,
    },
    /// An unsigned number of another width.
    Number {
        from: usize,
        from_size: usize,
        to: usize,
        to_size: usize,
        path: String,
    },
    /// Array elements that no longer have a place; they must be zero.
    Nothing {
        from: usize,
        len: usize,
        path: String,
    },
}

/// The part of an entry that is converted. No part of a key may be lost, or different entries would
/// get the same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryPart {
    Key,
    Value,
}

/// Why entries of the old layout cannot be converted to the new one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {why}", if .path.is_empty() { "the entry" } else { .path })]
pub struct Impossible {
    pub path: String,
    pub why: String,
}

/// A number that does not fit into its new place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{path} holds {value:#x}, which does not fit into this build's layout")]
pub struct Cut {
    pub path: String,
    pub value: u64,
}

impl Conversion {
    pub fn new(old: &Type, new: &Type, part: EntryPart) -> Result<Self, Impossible> {
        let mut steps = Vec::new();
        add(&mut steps, "", (old, 0), (new, 0), part)?;
        Ok(Self { steps: join(steps), old: old.size(), new: new.size() })
    }

    /// The size in bytes of one entry, before and after.
    pub const fn sizes(&self) -> (usize, usize) {
        (self.old, self.new)
    }

    /// Converts one entry.
    pub fn apply(&self, old: &[u8], new: &mut [u8]) -> Result<(), Cut> {
        // The size of a per-CPU value is padded to a multiple of eight, so zero the padding too.
        new.fill(0);
        for step in &self.steps {
            match step {
                Step::Copy { from, to, len } => new[*to..to + len].copy_from_slice(&old[*from..from + len]),
                Step::Number { from, from_size, to, to_size, path } => {
                    let value = number(&old[*from..from + from_size]);
                    if !set_number(&mut new[*to..to + to_size], value) {
                        return Err(Cut { path: path.clone(), value });
                    }
                }
                Step::Nothing { from, len, path } => {
                    if let Some(byte) = old[*from..from + len].iter().find(|byte| **byte != 0) {
                        return Err(Cut { path: path.clone(), value: u64::from(*byte) });
                    }
                }
            }
        }
        Ok(())
    }
}

fn add(
    steps: &mut Vec<Step>,
    path: &str,
    (old, from): (&Type, usize),
    (new, to): (&Type, usize),
    part: EntryPart,
) -> Result<(), Impossible> {
    let impossible = |why: String| Err(Impossible { path: path.to_owned(), why });
    match (old, new) {
        (Type::Int { size, signed }, Type::Int { size: new_size, signed: new_signed }) => {
            if size == new_size && (signed == new_signed) {
                steps.push(Step::Copy { from, to, len: *size });
            } else if *signed || *new_signed {
                return impossible(format!("a signed number changed its width or sign ({old}, now {new})"));
            } else if path.ends_with("_be") {
                return impossible(format!("a number in network order became another width ({old}, now {new})"));
            } else if *size > 8 || *new_size > 8 {
                return impossible(format!("numbers of this width are not converted ({old}, now {new})"));
            } else {
                let (from_size, to_size) = (*size, *new_size);
                steps.push(Step::Number { from, from_size, to, to_size, path: path.to_owned() });
            }
        }
        (Type::Array { element, len }, Type::Array { element: new_element, len: new_len }) => {
            for number in 0..*len.min(new_len) {
                let (from, to) = (from + number * element.size(), to + number * new_element.size());
                add(steps, path, (element, from), (new_element, to), part)?;
            }
            if len > new_len {
                let gone = (len - new_len) * element.size();
                let path = format!("{path}, element {new_len} and later,");
                steps.push(Step::Nothing { from: from + new_len * element.size(), len: gone, path });
            }
        }
        (Type::Struct { members, .. }, Type::Struct { members: new_members, .. }) => {
            for member in members.iter().filter(|member| !is_filler(&member.name)) {
                let path = inside(path, &member.name);
                match new_members.iter().find(|other| other.name == member.name) {
                    Some(other) => {
                        let (from, to) = (from + member.offset, to + other.offset);
                        add(steps, &path, (&member.ty, from), (&other.ty, to), part)?;
                    }
                    None if part == EntryPart::Value => {}
                    None => return Err(Impossible { path, why: "this part of the key is gone".to_owned() }),
                }
            }
        }
        _ => return impossible(format!("it was {old}, and is {new}")),
    }
    Ok(())
}

/// Merges adjacent copies into one.
fn join(steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::new();
    for step in steps {
        if let (Step::Copy { from, to, len }, Some(Step::Copy { from: last_from, to: last_to, len: last_len })) =
            (&step, joined.last_mut())
            && (*from, *to) == (*last_from + *last_len, *last_to + *last_len)
        {
            *last_len += len;
            continue;
        }
        joined.push(step);
    }
    joined
}

/// Reads up to 8 `bytes` as an unsigned number.
pub fn number(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let place = if cfg!(target_endian = "little") { 0 } else { 8 - bytes.len() };
    word[place..place + bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

/// Writes a number into up to 8 `bytes`; returns false and writes nothing if it does not fit.
#[must_use]
pub fn set_number(bytes: &mut [u8], value: u64) -> bool {
    let (word, len) = (value.to_ne_bytes(), bytes.len());
    if u64::BITS - value.leading_zeros() > 8 * len as u32 {
        return false;
    }
    let place = if cfg!(target_endian = "little") { 0 } else { 8 - len };
    bytes.copy_from_slice(&word[place..place + len]);
    true
}
