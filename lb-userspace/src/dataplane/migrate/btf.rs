//! Reads the types of a map's entries from BTF, as far as they are plain data. aya parses BTF, but
//! does not expose struct members. The format: https://docs.kernel.org/bpf/btf.html.

use super::layout::{Member, Type};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BtfError {
    #[error("it has no BTF, so the layout of its entries is unknown")]
    Missing,
    #[error("its BTF is cut short or damaged")]
    Damaged,
    #[error("its BTF has no type {0}")]
    NoType(u32),
    #[error("{0}: migration does not support this type")]
    Unknown(String),
}

const MAGIC: u16 = 0xeb9f;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The maximum nesting depth; a deeper type must contain itself.
const DEEPEST: u32 = 32;

/// Parsed BTF; its types are looked up by number.
pub struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    /// The offset of each type; the first is type 1.
    types: Vec<usize>,
}

impl<'a> Btf<'a> {
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let header = |at| word(data, at).map(|word| word as usize);
        if u16::from_ne_bytes(array(data, 0)?) != MAGIC {
            return Err(BtfError::Damaged);
        }
        let len = header(4)?;
        let (begin, end) = (len + header(8)?, len + header(8)? + header(12)?);
        let mut types = Vec::new();
        let mut at = begin;
        while at < end {
            types.push(at);
            let info = word(data, at + 4)?;
            let many = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 0x1f {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * many,
                    kind::ENUM | kind::FUNC_PROTO => 8 * many,
                    _ => 0,
                };
        }
        Ok(Self { data, strings: len + header(16)?, types })
    }

    /// The layout of a value of type `id`.
    pub fn layout(&self, id: u32) -> Result<Type, BtfError> {
        self.layout_at(id, DEEPEST)
    }

    fn layout_at(&self, id: u32, depth: u32) -> Result<Type, BtfError> {
        let at = *self.types.get((id as usize).wrapping_sub(1)).ok_or(BtfError::NoType(id))?;
        let depth = depth.checked_sub(1).ok_or(BtfError::Damaged)?;
        let info = self.word(at + 4)?;
        let (many, is_bitfield) = (info & 0xffff, info >> 31 != 0);
        let size = self.word(at + 8)?;
        match info >> 24 & 0x1f {
            kind::INT => {
                let encoding = self.word(at + 12)?;
                if encoding >> 16 & 0xff != 0 || (encoding & 0xff) != size * 8 {
                    return Err(BtfError::Unknown(format!(
                        "{} is an integer whose bits do not fill its bytes",
                        self.name(at)?
                    )));
                }
                Ok(Type::Int { size: size as usize, signed: encoding >> 24 & 1 != 0 })
            }
            kind::ENUM | kind::ENUM64 => Ok(Type::Int { size: size as usize, signed: is_bitfield }),
            kind::ARRAY => {
                let element = self.layout_at(self.word(at + 12)?, depth)?;
                Ok(Type::Array { element: Box::new(element), len: self.word(at + 20)? as usize })
            }
            kind::STRUCT => {
                if is_bitfield {
                    return Err(BtfError::Unknown(format!("{} has bit fields", self.name(at)?)));
                }
                let members = (0..many as usize).map(|number| {
                    let at = at + 12 + 12 * number;
                    let ty = self.layout_at(self.word(at + 4)?, depth)?;
                    Ok(Member { name: self.name(at)?, offset: self.word(at + 8)? as usize / 8, ty })
                });
                Ok(Type::Struct { size: size as usize, members: members.collect::<Result<_, _>>()? })
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.layout_at(size, depth)
            }
            kind::PTR => Err(BtfError::Unknown("it holds a pointer".to_owned())),
            kind::UNION => Err(BtfError::Unknown(format!("{} is a union", self.name(at)?))),
            other => Err(BtfError::Unknown(format!("{} is of BTF kind {other}", self.name(at)?))),
        }
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        word(self.data, at)
    }

    /// The name of the type or member that begins at `at`.
    fn name(&self, at: usize) -> Result<String, BtfError> {
        let begin = self.strings + self.word(at)? as usize;
        let rest = self.data.get(begin..).ok_or(BtfError::Damaged)?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or(BtfError::Damaged)?;
        Ok(String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned())
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    array(data, at).map(u32::from_ne_bytes)
}

fn array<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], BtfError> {
    data.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(BtfError::Damaged)
}
