//! The state directory: `overrides.json`, `hash-seed`, and `services-SOURCE.json` with the services
//! of each source that were served last. Each file is written atomically and readable by root
//! alone.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::set::{Override, Overrides};
use crate::{
    clock::unix_ns,
    model::{
        MAX_WEIGHT, Service,
        seed::{self, Seed},
    },
    state::{BackendId, ServiceName},
};

const OVERRIDES: &str = "overrides.json";
const HASH_SEED: &str = "hash-seed";
const VERSION: u32 = 1;

/// The directory where the agent keeps state that is in no configuration file and in no map.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state directory {}: {source}; it must be writable, or choose another with --state-dir", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("can't read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    /// A new seed would move every connection, so none is made.
    #[error(
        "{} holds no seed of 32 hex digits: put the right one there or into hashSeed of the configuration, or remove \
        the file for a new one, which moves every connection",
        .path.display()
    )]
    Seed { path: PathBuf },
}

/// A file that could not be parsed, and the path where it is kept now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} is damaged ({reason}): kept as {}; {lost}", .path.display(), .kept.display())]
pub struct Damaged {
    pub path: PathBuf,
    pub kept: PathBuf,
    pub reason: String,
    /// What is lost with the file.
    pub lost: &'static str,
}

impl StateDir {
    /// Creates the directory, accessible to root alone, if it doesn't exist.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateError::Directory { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// The stored overrides. If the file is damaged: no overrides, and where the damaged file is
    /// kept.
    pub fn overrides(&self) -> Result<(Overrides, Option<Damaged>), StateError> {
        const LOST: &str = "drains and weights set by the CLI are lost, set them again";
        let (overrides, damaged) = self.load(OVERRIDES, LOST, understand)?;
        Ok((overrides.unwrap_or_default(), damaged))
    }

    pub fn save(&self, overrides: &Overrides) -> Result<(), StateError> {
        let file = OverridesFile { version: VERSION, backends: overrides.iter().map(SavedOverride::from).collect() };
        self.store(OVERRIDES, &file)
    }

    /// The services of the source that were served last, as [`StateDir::save_served`] has stored
    /// them. `None` if there is no file, or if it is damaged: then also where the damaged file is
    /// kept.
    pub fn served(&self, source: &str) -> Result<(Option<Vec<Service>>, Option<Damaged>), StateError> {
        const LOST: &str = "until the source has synced, what the maps hold stays, without names";
        self.load(&served_name(source), LOST, |bytes| {
            let file: ServedFile<Vec<Service>> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            is_version(file.version)?;
            Ok(file.services)
        })
    }

    pub fn save_served(&self, source: &str, services: &[Service]) -> Result<(), StateError> {
        self.store(&served_name(source), &ServedFile { version: VERSION, services })
    }

    /// The contents of a file; `None` if there is no file, or if it is damaged: then it is renamed.
    fn load<T>(
        &self,
        name: &str,
        lost: &'static str,
        understand: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<(Option<T>, Option<Damaged>), StateError> {
        let path = self.0.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        match understand(&bytes) {
            Ok(value) => Ok((Some(value), None)),
            Err(reason) => {
                let kept = self.keep_aside(name)?;
                Ok((None, Some(Damaged { path, kept, reason, lost })))
            }
        }
    }

    fn store(&self, name: &str, value: &impl Serialize) -> Result<(), StateError> {
        let path = self.0.join(name);
        let write = || {
            let mut text = serde_json::to_vec_pretty(value)?;
            text.push(b'\n');
            self.complete(&text)?.persist(&path).map_err(|error| error.error)?;
            self.sync()
        };
        write().map_err(|source| StateError::Write { path: path.clone(), source })
    }

    /// The seed for a configuration without one; generated on first use.
    pub fn hash_seed(&self) -> Result<Seed, StateError> {
        let path = self.0.join(HASH_SEED);
        match fs::read_to_string(&path) {
            Ok(text) => seed::from_hex(text.trim()).ok_or(StateError::Seed { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_seed(path),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(StateError::Seed { path }),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    fn make_seed(&self, path: PathBuf) -> Result<Seed, StateError> {
        let write = || {
            let seed = seed::random()?;
            let text = format!("{}\n", seed::to_hex(&seed));
            self.complete(text.as_bytes())?.persist_noclobber(&path).map_err(|error| error.error)?;
            self.sync()?;
            Ok(seed)
        };
        write().map_err(|source| StateError::Write { path: path.clone(), source })
    }

    /// A temporary file of mode 0600 with all of `text` synced to disk, which does not have its
    /// final name yet.
    fn complete(&self, text: &[u8]) -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new_in(&self.0)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    /// Makes a rename in the directory durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn keep_aside(&self, name: &str) -> Result<PathBuf, StateError> {
        let now = unix_ns(SystemTime::now());
        let kept = self.0.join(format!("{name}.damaged-{now}"));
        fs::rename(self.0.join(name), &kept).map_err(|source| StateError::Write { path: kept.clone(), source })?;
        Ok(kept)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverridesFile {
    version: u32,
    backends: Vec<SavedOverride>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedOverride {
    service: ServiceName,
    address: SocketAddr,
    #[serde(default)]
    drain: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

impl From<(&BackendId, &Override)> for SavedOverride {
    fn from((id, set): (&BackendId, &Override)) -> Self {
        Self { service: id.service.clone(), address: id.address, drain: set.drain, weight: set.weight }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServedFile<T> {
    version: u32,
    services: T,
}

fn served_name(source: &str) -> String {
    format!("services-{source}.json")
}

fn is_version(version: u32) -> Result<(), String> {
    if version == VERSION { Ok(()) } else { Err(format!("version {version}, not {VERSION}")) }
}

fn understand(bytes: &[u8]) -> Result<Overrides, String> {
    let file: OverridesFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    is_version(file.version)?;
    if let Some(entry) = file.backends.iter().find(|entry| entry.weight.is_some_and(|weight| weight > MAX_WEIGHT)) {
        return Err(format!("a weight above {MAX_WEIGHT} for {}", entry.address));
    }
    let entry = |entry: SavedOverride| {
        let id = BackendId { service: entry.service, address: entry.address };
        (id, Override { drain: entry.drain, weight: entry.weight })
    };
    Ok(file.backends.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn some() -> Overrides {
        let id = |address: &str| BackendId { service: ServiceName::of_file("web"), address: address.parse().unwrap() };
        [
            (id("10.0.0.1:80"), Override { drain: true, weight: None }),
            (id("[fd02::1]:80"), Override { drain: false, weight: Some(0) }),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn what_was_saved_is_there_again_and_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lib/weir");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.overrides().unwrap(), (Overrides::default(), None));
        for overrides in [some(), Overrides::default(), some()] {
            state.save(&overrides).unwrap();
            assert_eq!(StateDir::open(&path).unwrap().overrides().unwrap(), (overrides, None));
        }
        assert_eq!((mode(&path), mode(&path.join(OVERRIDES))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "temporary files are left");
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_named() {
        for text in [
            "",
            "{",
            "[]",
            r#"{ "version": 2, "backends": [] }"#,
            r#"{ "version": 1, "backends": [{ "service": "web", "address": "10.0.0.1" }] }"#,
            r#"{ "version": 1, "backends": [{ "service": "web", "address": "10.0.0.1:80", "weight": 4000000000 }] }"#,
        ] {
            let folder = tempfile::tempdir().unwrap();
            let state = StateDir::open(folder.path()).unwrap();
            fs::write(folder.path().join(OVERRIDES), text).unwrap();
            let (overrides, damaged) = state.overrides().unwrap();
            assert_eq!(overrides, Overrides::default());
            assert_eq!(fs::read_to_string(damaged.expect(text).kept).unwrap(), text);
            state.save(&some()).unwrap();
            assert_eq!(state.overrides().unwrap(), (some(), None));
        }
    }

    #[test]
    fn a_seed_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let seed = state.hash_seed().unwrap();
        assert_eq!(StateDir::open(folder.path()).unwrap().hash_seed().unwrap(), seed);
        assert_eq!(mode(&folder.path().join(HASH_SEED)), 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(StateDir::open(other.path()).unwrap().hash_seed().unwrap(), seed);
    }

    #[test]
    fn a_damaged_seed_is_an_error_and_stays() {
        for text in [&b""[..], b"8f1c\n", &[0xff, 0xfe]] {
            let folder = tempfile::tempdir().unwrap();
            let state = StateDir::open(folder.path()).unwrap();
            fs::write(folder.path().join(HASH_SEED), text).unwrap();
            assert!(matches!(state.hash_seed(), Err(StateError::Seed { .. })));
            assert_eq!(fs::read(folder.path().join(HASH_SEED)).unwrap(), text);
        }
    }

    #[test]
    fn a_state_directory_that_cannot_be_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let path = folder.path().join("file/weir");
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("--state-dir"), "{error}");
    }
}
