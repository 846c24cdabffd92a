//! The ring slot: two owners and flags in one 64-bit word.
//!
//! Bits 0 to 23 hold the index of `current`, 24 to 47 that of `previous`, 48 to 63 the flags.

const OWNER_BITS: u32 = 24;
const OWNER_MASK: u64 = (1 << OWNER_BITS) - 1;
const FLAGS_SHIFT: u32 = 2 * OWNER_BITS;

/// The owner that rejects: no backend is eligible.
pub const REJECT: u32 = 0;

/// One slot, as it lies in `RINGS`. Owners are indexes into `BACKENDS`, below 2^24.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u64);

impl Slot {
    /// Flows of this slot may be elsewhere than at its owner: look them up.
    pub const TRACKED: u64 = 1 << FLAGS_SHIFT;
    /// The agent settles it: until what SEEN holds has become ESTABLISHED, a flow that is in no
    /// other table goes where SEEN says.
    pub const SETTLING: u64 = 1 << (FLAGS_SHIFT + 1);
    /// The agent looks whether any entry of this slot is left: a program sets [`Slot::WRITTEN`]
    /// before it writes one.
    pub const COLLECTING: u64 = 1 << (FLAGS_SHIFT + 2);
    /// A program has written an entry since the agent has set [`Slot::COLLECTING`].
    pub const WRITTEN: u64 = 1 << (FLAGS_SHIFT + 3);
    /// ESTABLISHED may hold entries of this slot. Without this flag, and without
    /// [`Slot::COLLECTING`], nobody looks there; likewise below.
    pub const IN_ESTABLISHED: u64 = 1 << (FLAGS_SHIFT + 4);
    pub const IN_HALF_OPEN: u64 = 1 << (FLAGS_SHIFT + 5);
    pub const IN_SEEN: u64 = 1 << (FLAGS_SHIFT + 6);
    /// All three.
    pub const IN_TABLES: u64 = Self::IN_ESTABLISHED | Self::IN_HALF_OPEN | Self::IN_SEEN;

    /// A slot whose owners agree, without a flag.
    #[inline(always)]
    pub const fn settled(owner: u32) -> Self {
        Self::new(owner, owner, 0)
    }

    #[inline(always)]
    pub const fn new(current: u32, previous: u32, flags: u64) -> Self {
        Self((current as u64 & OWNER_MASK) | ((previous as u64 & OWNER_MASK) << OWNER_BITS) | flags)
    }

    #[inline(always)]
    pub const fn current(self) -> u32 {
        (self.0 & OWNER_MASK) as u32
    }

    #[inline(always)]
    pub const fn previous(self) -> u32 {
        ((self.0 >> OWNER_BITS) & OWNER_MASK) as u32
    }

    #[inline(always)]
    pub const fn flags(self) -> u64 {
        self.0 >> FLAGS_SHIFT << FLAGS_SHIFT
    }

    /// Forward to `current`, no look-up, no state.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.flags() == 0 && self.current() == self.previous()
    }

    #[inline(always)]
    pub const fn in_transition(self) -> bool {
        self.current() != self.previous()
    }

    /// The slot after its owner became `owner`: `previous` is the owner from when they last agreed,
    /// and a return to it leaves the slot tracked. A settled slot that rejects has no flows to
    /// keep.
    pub const fn changed(self, owner: u32) -> Self {
        if owner == self.current() {
            return self;
        }
        if self.is_settled() {
            let previous = if self.current() == REJECT { owner } else { self.current() };
            return Self::new(owner, previous, 0);
        }
        let flags = if owner == self.previous() { self.flags() | Self::TRACKED } else { self.flags() };
        Self::new(owner, self.previous(), flags)
    }

    /// The slot after `owner` is gone (disabled, or its drain has ended): a previous owner that is
    /// gone has no flows to keep, but others may have exceptions.
    pub const fn without(self, owner: u32) -> Self {
        if self.previous() == owner && self.current() != owner {
            return Self::new(self.current(), self.current(), self.flags() | Self::TRACKED);
        }
        self
    }

    /// The slot as it begins to settle: its owners agree, and SEEN is asked as well.
    pub const fn settling(self) -> Self {
        Self::new(self.current(), self.current(), self.flags() | Self::TRACKED | Self::SETTLING)
    }

    /// The same slot with these flags set.
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// The same slot with these flags cleared.
    pub const fn clear(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// Whether the table of this `IN_*` flag may hold entries of the slot. While the agent finds
    /// out which do, all may.
    #[inline(always)]
    pub const fn may_be(self, table: u64) -> bool {
        self.has(table | Self::COLLECTING)
    }

    /// Whether any of these flags is set.
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "slot {}<-{}", self.current(), self.previous())?;
        for (flag, name) in [
            (Self::TRACKED, " tracked"),
            (Self::SETTLING, " settling"),
            (Self::COLLECTING, " collecting"),
            (Self::WRITTEN, " written"),
            (Self::IN_ESTABLISHED, " established"),
            (Self::IN_HALF_OPEN, " half-open"),
            (Self::IN_SEEN, " seen"),
        ] {
            if self.has(flag) {
                write!(f, "{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: u32 = 7;
    const B: u32 = 0x00ab_cdef;
    const C: u32 = 0x00ff_ffff;

    #[test]
    fn first_change_remembers_where_it_came_from_and_the_second_keeps_that() {
        let slot = Slot::settled(A).changed(B);
        assert_eq!((slot.current(), slot.previous(), slot.flags()), (B, A, 0));
        let slot = slot.changed(C);
        assert_eq!((slot.current(), slot.previous(), slot.flags()), (C, A, 0));
    }

    #[test]
    fn change_back_leaves_the_slot_tracked() {
        let slot = Slot::settled(A).changed(B).changed(A);
        assert_eq!((slot.current(), slot.previous()), (A, A));
        assert!(!slot.is_settled() && slot.flags() == Slot::TRACKED);
        assert_eq!(slot.changed(B), Slot::new(B, A, Slot::TRACKED));
    }

    #[test]
    fn owners_agree_at_once_when_the_previous_is_gone() {
        let slot = Slot::settled(A).changed(B).without(A);
        assert_eq!(slot, Slot::new(B, B, Slot::TRACKED));
        assert_eq!(Slot::settled(A).without(A), Slot::settled(A));
    }

    proptest! {
        #[test]
        fn fields_do_not_touch_each_other(
            current in 0..1_u32 << 24,
            previous in 0..1_u32 << 24,
            flags in 0..1_u64 << 16,
        ) {
            let slot = Slot::new(current, previous, flags << 48);
            prop_assert_eq!((slot.current(), slot.previous(), slot.flags()), (current, previous, flags << 48));
        }

        #[test]
        fn previous_changes_only_when_the_owners_agree(changes in proptest::collection::vec(0..5_u32, 1..40)) {
            let mut slot = Slot::settled(0);
            for owner in changes {
                let before = slot;
                slot = slot.changed(owner);
                prop_assert_eq!(slot.current(), owner);
                if !before.is_settled() {
                    prop_assert_eq!(slot.previous(), before.previous());
                }
            }
        }
    }
}
