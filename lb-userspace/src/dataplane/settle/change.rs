//! How to apply a planned slot change when the slot no longer holds the value that the plan
//! expected: the settle task and the program change slots too.

use lb_common::slot::Slot;

/// The new value of a slot that holds `found`, where the plan expected `from` and wants `to`: it
/// takes the planned current owner, and drops the previous owner if the plan drops it.
pub fn follow(found: Slot, from: Slot, to: Slot) -> Slot {
    if found == from || to.is_settled() {
        return to;
    }
    let kept = from.changed(to.current());
    let next = found.changed(to.current());
    if kept.previous() == to.previous() { next } else { next.without(kept.previous()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = Slot::TRACKED | Slot::SETTLING | Slot::COLLECTING | Slot::WRITTEN | Slot::IN_TABLES;

    #[test]
    fn a_slot_that_began_to_settle_meanwhile_keeps_its_flags_and_its_new_previous_owner() {
        let from = Slot::new(2, 1, 0);
        let settling = from.settling();
        assert_eq!(follow(settling, from, from.changed(3)), Slot::new(3, 2, Slot::TRACKED | Slot::SETTLING));
        // The previous owner that the plan drops is no longer there.
        assert_eq!(follow(settling, from, from.without(1)), settling);
        assert_eq!(
            follow(from.with(Slot::WRITTEN), from, from.without(1)),
            Slot::new(2, 2, Slot::TRACKED | Slot::WRITTEN)
        );
    }

    proptest! {
        #[test]
        fn the_owner_comes_and_no_flag_is_lost(
            found in 1..4_u32,
            previous in 1..4_u32,
            flags in 0..128_u64,
            from in 1..4_u32,
            from_previous in 1..4_u32,
            owner in 1..4_u32,
        ) {
            let found = Slot::new(found, previous, (flags << 48) & ALL | Slot::TRACKED);
            let from = Slot::new(from, from_previous, Slot::TRACKED);
            let next = follow(found, from, from.changed(owner));
            prop_assert_eq!(next.current(), owner);
            prop_assert!(found == from || next.flags() & found.flags() == found.flags());
        }
    }
}
