//! The types of a map's keys and values, and how two layouts differ.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A type of plain data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    Int { size: usize, signed: bool },
    Array { element: Box<Type>, len: usize },
    Struct { size: usize, members: Vec<Member> },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// In bytes.
    pub offset: usize,
    pub ty: Type,
}

/// The types of a map's key and value. Struct types have no names here, only their members do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    pub key: Type,
    pub value: Type,
}

/// Layouts of maps, by their ids.
pub type Layouts = BTreeMap<u32, Layout>;

/// A number inside a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The name of the member that is this number or contains it; empty if the value itself is a
    /// number.
    pub name: String,
    pub offset: usize,
    pub size: usize,
}

impl Type {
    pub fn size(&self) -> usize {
        match self {
            Type::Int { size, .. } | Type::Struct { size, .. } => *size,
            Type::Array { element, len } => element.size() * len,
        }
    }

    /// All numbers in the type, except filler members.
    pub fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        self.add_leaves("", 0, &mut leaves);
        leaves
    }

    fn add_leaves(&self, name: &str, offset: usize, leaves: &mut Vec<Leaf>) {
        match self {
            Type::Int { size, .. } => leaves.push(Leaf { name: name.to_owned(), offset, size: *size }),
            Type::Array { element, len } => {
                for number in 0..*len {
                    element.add_leaves(name, offset + number * element.size(), leaves);
                }
            }
            Type::Struct { members, .. } => {
                for member in members.iter().filter(|member| !is_filler(&member.name)) {
                    member.ty.add_leaves(&member.name, offset + member.offset, leaves);
                }
            }
        }
    }

    /// Adds every member that is not itself a struct, by its path.
    fn fields(&self, path: &str, fields: &mut BTreeMap<String, String>) {
        match self {
            Type::Struct { members, .. } => {
                for member in members.iter().filter(|member| !is_filler(&member.name)) {
                    member.ty.fields(&inside(path, &member.name), fields);
                }
            }
            Type::Array { element, len } if matches!(**element, Type::Struct { .. }) => {
                element.fields(&format!("{path}[{len}]"), fields);
            }
            _ => {
                fields.insert(path.to_owned(), self.to_string());
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Int { size, signed } => write!(f, "{}{}", if *signed { 'i' } else { 'u' }, size * 8),
            Type::Array { element, len } => write!(f, "[{element}; {len}]"),
            Type::Struct { size, .. } => write!(f, "{size} bytes"),
        }
    }
}

/// How `new` differs from `old`, in a few words for a log line.
pub fn differences(old: &Type, new: &Type) -> String {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    old.fields("", &mut before);
    new.fields("", &mut after);
    let mut words = Vec::new();
    for (path, ty) in &after {
        match before.get(path) {
            None => words.push(format!("+{path}")),
            Some(was) if was != ty => words.push(format!("{path} {was} -> {ty}")),
            Some(_) => {}
        }
    }
    words.extend(before.keys().filter(|path| !after.contains_key(*path)).map(|path| format!("-{path}")));
    if words.is_empty() { "the same members at other offsets".to_owned() } else { words.join(", ") }
}

/// Whether members of this name are filler: they are zero in every build.
pub fn is_filler(name: &str) -> bool {
    name.starts_with("reserved")
}

pub fn inside(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
