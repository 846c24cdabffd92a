//! Places the SNAT addresses of each backend in `SNAT_ADDRESSES`: in one contiguous run, which
//! backends with the same addresses share.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{backend::Backend, limits::MAX_SNAT_ADDRESSES};

use crate::dataplane::image::Image;

pub struct Blocks {
    before: Vec<Option<IpAddr>>,
    /// Indexes that programmed backend entries name, wanted or not. They must not be overwritten
    /// before the backend entries have been.
    named: BTreeSet<usize>,
    after: Vec<Option<IpAddr>>,
}

impl Blocks {
    pub fn of(programmed: &Image) -> Self {
        let named = programmed.backends.values().filter(|backend| backend.family != 0).flat_map(range).collect();
        Self { before: programmed.snat_addresses.clone(), named, after: vec![None; MAX_SNAT_ADDRESSES as usize] }
    }

    /// Like [`Blocks::of`], but all programmed addresses stay: for a plan of some services only.
    pub fn beside(programmed: &Image) -> Self {
        let blocks = Self::of(programmed);
        let mut after = programmed.snat_addresses.clone();
        after.resize(blocks.after.len(), None);
        Self { after, ..blocks }
    }

    /// Keeps the addresses that `entry` names.
    pub fn keep(&mut self, programmed: &Image, entry: &Backend) {
        for index in range(entry) {
            if let (Some(to), Some(from)) = (self.after.get_mut(index), programmed.snat_addresses.get(index)) {
                *to = *from;
            }
        }
    }

    /// Places `addresses`, where they already are if possible, and returns the first index and the
    /// number. `None` if there is no room.
    pub fn assign(&mut self, addresses: &[IpAddr], before: Option<&Backend>) -> Option<(u16, u16)> {
        if addresses.is_empty() {
            return Some((0, 0));
        }
        let first = before
            .map(|before| before.snat_first as usize)
            .filter(|first| self.is_at(addresses, *first))
            .or_else(|| (0..self.after.len()).find(|first| self.is_at(addresses, *first)))
            .or_else(|| (0..self.after.len()).find(|first| self.is_free(addresses.len(), *first)))?;
        for (to, address) in self.after.iter_mut().skip(first).zip(addresses) {
            *to = Some(*address);
        }
        Some((u16::try_from(first).ok()?, u16::try_from(addresses.len()).ok()?))
    }

    /// The resulting addresses, without holes at the end.
    pub fn into_addresses(mut self) -> Vec<Option<IpAddr>> {
        while self.after.last().is_some_and(Option::is_none) {
            self.after.pop();
        }
        self.after
    }

    fn is_at(&self, addresses: &[IpAddr], first: usize) -> bool {
        let at = |index: usize| {
            let after = self.after.get(index).copied().flatten();
            after.or_else(|| self.before.get(index).copied().flatten())
        };
        addresses.iter().zip(first..).all(|(address, index)| at(index) == Some(*address))
    }

    fn is_free(&self, len: usize, first: usize) -> bool {
        (first..first + len)
            .all(|index| self.after.get(index).is_some_and(Option::is_none) && !self.named.contains(&index))
    }
}

fn range(backend: &Backend) -> std::ops::Range<usize> {
    let first = backend.snat_first as usize;
    let count = if first + backend.snat_count as usize <= MAX_SNAT_ADDRESSES as usize { backend.snat_count } else { 0 };
    first..first + count as usize
}
