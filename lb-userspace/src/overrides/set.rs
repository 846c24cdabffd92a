//! The overrides of each backend.

use std::collections::{BTreeMap, BTreeSet};

use crate::{model::Config, state::BackendId};

/// The overrides of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Override {
    pub drain: bool,
    /// `None`: the weight from the file.
    pub weight: Option<u32>,
}

impl Override {
    const NOTHING: Self = Self { drain: false, weight: None };
}

/// The overrides of all backends; an entry that overrides nothing is not stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides(BTreeMap<BackendId, Override>);

impl Overrides {
    pub fn of(&self, backend: &BackendId) -> Override {
        self.0.get(backend).copied().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&BackendId, &Override)> {
        self.0.iter()
    }

    /// Sets or removes the drain. Returns whether that changed anything.
    pub fn set_drain(&mut self, backend: &BackendId, drain: bool) -> bool {
        self.set(backend, Override { drain, ..self.of(backend) })
    }

    /// Sets the weight; `None` removes the override. Returns whether that changed anything.
    pub fn set_weight(&mut self, backend: &BackendId, weight: Option<u32>) -> bool {
        self.set(backend, Override { weight, ..self.of(backend) })
    }

    fn set(&mut self, backend: &BackendId, to: Override) -> bool {
        let before = self.of(backend);
        if to == Override::NOTHING {
            self.0.remove(backend);
        } else {
            self.0.insert(backend.clone(), to);
        }
        before != to
    }

    /// Drops the overrides of backends that are neither declared nor still draining in the data
    /// path. Returns these backends.
    ///
    /// A backend that is declared again while it drains is the same backend, and keeps its
    /// overrides.
    pub fn forget_gone(&mut self, config: &Config, is_draining: impl Fn(&BackendId) -> bool) -> BTreeSet<BackendId> {
        let is_declared = |id: &BackendId| config.backend(id).is_some();
        let gone: BTreeSet<BackendId> =
            self.0.keys().filter(|id| !is_declared(id) && !is_draining(id)).cloned().collect();
        self.0.retain(|id, _| !gone.contains(id));
        gone
    }
}

impl FromIterator<(BackendId, Override)> for Overrides {
    fn from_iter<I: IntoIterator<Item = (BackendId, Override)>>(entries: I) -> Self {
        Self(entries.into_iter().filter(|(_, one)| *one != Override::NOTHING).collect())
    }
}
