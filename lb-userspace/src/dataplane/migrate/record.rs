//! The record of the layouts of Weir's pinned maps and of the programs that use them: text in the
//! pinned map `LAYOUTS`.
//!
//! The kernel keeps the types of a map's entries as BTF, but opens BTF, programs and maps *by id*
//! only for CAP_SYS_ADMIN, which the agent does not have in its systemd unit. So every agent
//! records the layouts of the maps that it has made or taken over. A layout is stored under the
//! map's id, which the kernel does not reuse soon: a map that someone else pinned under the same
//! name has another id, and no layout here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapError, MapType},
    pin::PinError,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::Layout;
use crate::dataplane::{
    bpffs,
    raw::bytes::{Bytes, Put},
};

/// The name of the map, and of its pin.
pub const LAYOUTS: &str = "LAYOUTS";

/// The start of the text; the number is the version of the format.
const HEADING: &str = "weir layouts 1";

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The layout of each map's entries, by the map's id.
    pub maps: BTreeMap<u32, Layout>,
    /// The ids of the maps that a program uses, by the program's id.
    pub programs: BTreeMap<u32, BTreeSet<u32>>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read the pinned map {}: {source}", .path.display())]
    Read { path: PathBuf, source: MapError },
    #[error("the pinned map {} is damaged: {why}", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("cannot write the record of layouts as JSON: {0}")]
    Text(serde_json::Error),
    #[error("cannot make the map {LAYOUTS}: {0}")]
    Make(MapError),
    #[error("cannot pin the map {LAYOUTS}: {0}")]
    Pin(PinError),
}

impl Record {
    /// The pinned record; `None` if there is none, as before the first start or after a build that
    /// does not write one.
    pub fn read(pin_dir: &Path) -> Result<Option<Self>, RecordError> {
        let path = pin_dir.join(LAYOUTS);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_bytes(&path).map_err(|source| RecordError::Read { path: path.clone(), source })?;
        parse(&text).map(Some).map_err(|why| RecordError::Damaged { path, why })
    }

    /// Replaces the pinned record. An interruption leaves either the old one or the new one.
    pub fn write(&self, pin_dir: &Path) -> Result<(), RecordError> {
        let text = self.to_text()?;
        let definition =
            aya_obj::Map::new_from_params(MapType::Array as u32, size_of::<u32>() as u32, text.len() as u32, 1, 0);
        let map = MapData::create(definition, LAYOUTS, None).map_err(RecordError::Make)?;
        let bytes = Bytes::of(&map).map_err(RecordError::Make)?;
        bytes
            .put(&0_u32.to_ne_bytes(), &text, Put::Any)
            .map_err(|error| RecordError::Make(MapError::IoError(error)))?;
        bpffs::pin_over(&pin_dir.join(LAYOUTS), |path| map.pin(path)).map_err(RecordError::Pin)
    }

    /// One line with the heading and the digest of the rest; then JSON, padded with spaces to a
    /// multiple of 8 bytes.
    fn to_text(&self) -> Result<Vec<u8>, RecordError> {
        let mut json = serde_json::to_string(self).map_err(RecordError::Text)?;
        let line = format!("{HEADING} {}\n", digest(""));
        let len = (line.len() + json.len()).next_multiple_of(8) - line.len();
        json.push_str(&" ".repeat(len - json.len()));
        Ok(format!("{HEADING} {}\n{json}", digest(&json)).into_bytes())
    }
}

/// The bytes of the map's first entry; zeros if there is none.
fn read_bytes(path: &Path) -> Result<Vec<u8>, MapError> {
    let map = MapData::from_pin(path)?;
    let bytes = Bytes::of(&map)?;
    let first = 0_u32.to_ne_bytes();
    if bytes.key != first.len() {
        return Err(MapError::InvalidKeySize { size: first.len(), expected: bytes.key });
    }
    let mut text = vec![0; bytes.value];
    bytes.find(&first, &mut text).map_err(MapError::IoError)?;
    Ok(text)
}

fn parse(text: &[u8]) -> Result<Record, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8 text".to_owned())?;
    let (line, json) = text.split_once('\n').ok_or("it has no heading")?;
    let (heading, expected) = line.rsplit_once(' ').ok_or("it has no heading")?;
    if heading != HEADING {
        return Err(format!("its heading is {heading:?}, and this build knows {HEADING:?}"));
    }
    if digest(json) != expected {
        return Err("its digest does not match its contents".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::migrate::layout::{Member, Type};

    fn record() -> Record {
        let number = Type::Int { size: 4, signed: false };
        let member = Member { name: "flags".to_owned(), offset: 0, ty: number.clone() };
        let value = Type::Struct { size: 8, members: vec![member] };
        let value = Type::Array { element: Box::new(value), len: 3 };
        Record {
            maps: BTreeMap::from([(17, Layout { key: number, value })]),
            programs: BTreeMap::from([(4, BTreeSet::from([17, 18]))]),
        }
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        let text = record().to_text().unwrap();
        assert!(text.len().is_multiple_of(8));
        assert_eq!(parse(&text), Ok(record()));
        assert_eq!(parse(&Record::default().to_text().unwrap()), Ok(Record::default()));
    }

    #[test]
    fn record_with_any_byte_changed_is_refused() {
        let text = record().to_text().unwrap();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            assert!(parse(&damaged).is_err(), "byte {at}");
        }
        assert!(parse(&[]).is_err() && parse(&[0; 64]).is_err());
    }
}
