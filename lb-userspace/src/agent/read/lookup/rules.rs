//! A second implementation of the rules of the ring (docs/architecture.md), for lookups; the BPF
//! program's is in `lb-ebpf/src/dsr.rs`.

use std::collections::BTreeMap;

use lb_common::{
    backend::Backend,
    exception::{EXCEPTION_CLOSING, Exception},
    slot::{REJECT, Slot},
    syn::Syn,
    trace::rule,
    verdict::Reason,
};

use crate::dataplane::tables::exceptions::FlowExceptions;

/// A slot of a DSR service, and the entries of one flow in the tables.
pub struct Rules<'a> {
    pub backends: &'a BTreeMap<u32, Backend>,
    /// The id of the service.
    pub service: u32,
    pub slot: Slot,
    pub exceptions: &'a FlowExceptions,
    /// The fingerprint of the flow's first SYN, if the current SYN is a retransmission.
    pub first: Option<Syn>,
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookupOutcome {
    To {
        index: u32,
        rule: u8,
    },
    /// The packet's backend is dead or gone, and the backend's flows are ended.
    Ends {
        index: u32,
        reason: Reason,
    },
}

impl Rules<'_> {
    /// The outcome for a SYN.
    pub fn opens(&self) -> LookupOutcome {
        let again = self.first.map(Syn::owner).filter(|owner| self.is_owner(*owner));
        let again = again.map(|index| LookupOutcome::To { index, rule: rule::SYN_AGAIN });
        if self.slot.is_settled() {
            // The packets after the SYN go to the slot's owner, so the SYN must go there too.
            let to_owner = LookupOutcome::To { index: self.slot.current(), rule: rule::RING };
            return again.filter(|_| self.first.map(Syn::owner) == Some(self.slot.current())).unwrap_or(to_owner);
        }
        let current = LookupOutcome::To { index: self.slot.current(), rule: rule::CURRENT };
        self.already().or(again).unwrap_or(current)
    }

    /// The outcome for a SYN whose flow already has a living entry.
    fn already(&self) -> Option<LookupOutcome> {
        let lives = |entry: &Exception| self.state(entry) == State::Living;
        let is_closing = |entry: &Exception| entry.flags & EXCEPTION_CLOSING != 0;
        if let Some(entry) = self.exceptions.established.filter(lives) {
            return (!is_closing(&entry))
                .then_some(LookupOutcome::To { index: entry.backend, rule: rule::ESTABLISHED });
        }
        let is_asked = |entry: &Exception| entry.backend == self.slot.previous() || self.slot.has(Slot::SETTLING);
        let seen = self.exceptions.seen.filter(|entry| is_asked(entry) && !is_closing(entry) && lives(entry));
        seen.map(|entry| LookupOutcome::To { index: entry.backend, rule: rule::SEEN })
    }

    /// The outcome for a packet of an existing connection. If the sequence number of the SYN is not
    /// known, any half-open entry matches.
    pub fn goes_on(&self, sequence: Option<u32>) -> LookupOutcome {
        if self.slot.is_settled() {
            return LookupOutcome::To { index: self.slot.current(), rule: rule::RING };
        }
        let FlowExceptions { established, half_open, seen } = self.exceptions;
        let fits = |entry: &Exception| sequence.is_none_or(|of_syn| entry.sequence == of_syn);
        let entries = [(rule::ESTABLISHED, *established), (rule::HALF_OPEN, half_open.filter(fits))];
        for (rule, entry) in entries.into_iter().filter_map(|(rule, entry)| Some((rule, entry?))) {
            match self.state(&entry) {
                State::Living => return LookupOutcome::To { index: entry.backend, rule },
                State::Ends(reason) => return LookupOutcome::Ends { index: entry.backend, reason },
                State::Absent => {}
            }
        }
        if self.slot.has(Slot::SETTLING)
            && let Some(entry) = seen.filter(|entry| self.state(entry) == State::Living)
        {
            return LookupOutcome::To { index: entry.backend, rule: rule::SEEN };
        }
        self.misses()
    }

    fn misses(&self) -> LookupOutcome {
        let (current, previous) = (self.slot.current(), self.slot.previous());
        if !self.slot.in_transition() {
            return LookupOutcome::To { index: current, rule: rule::RING };
        }
        match self.backends.get(&previous).map(of_backend) {
            Some(State::Living) => LookupOutcome::To { index: previous, rule: rule::PREVIOUS },
            Some(State::Ends(reason)) => LookupOutcome::Ends { index: previous, reason },
            Some(State::Absent) | None => LookupOutcome::To { index: current, rule: rule::PREVIOUS_GONE },
        }
    }

    fn is_owner(&self, index: u32) -> bool {
        let backend = self.backends.get(&index);
        index != REJECT && backend.is_some_and(|backend| backend.is_serving() && backend.service == self.service)
    }

    fn state(&self, entry: &Exception) -> State {
        let backend = self.backends.get(&entry.backend).filter(|backend| backend.generation == entry.generation);
        backend.map_or(State::Absent, of_backend)
    }
}

/// What happens to the flows of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Living,
    Ends(Reason),
    Absent,
}

fn of_backend(backend: &Backend) -> State {
    if backend.is_serving() {
        State::Living
    } else if backend.flags & Backend::FLAG_RESET != 0 {
        State::Ends(Reason::BackendDead)
    } else if backend.flags & Backend::FLAG_DROP != 0 {
        State::Ends(Reason::BackendDeadDrop)
    } else {
        State::Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;

    fn backends(flags_of_a: u32) -> BTreeMap<u32, Backend> {
        let backend = |flags| Backend { flags, generation: 5, service: 1, family: 4, ..Backend::FREE };
        BTreeMap::from([(A, backend(flags_of_a)), (B, backend(Backend::FLAG_SERVING))])
    }

    fn entry(backend: u32, flags: u32) -> Exception {
        Exception { backend, generation: 5, slot: 0, sequence: 70, flags, reserved: 0, last_seen_ns: 0 }
    }

    /// The outcomes for a SYN and for a packet of an existing connection, for a slot that has
    /// changed from A to B.
    fn both(flags_of_a: u32, slot: Slot, exceptions: FlowExceptions) -> (LookupOutcome, LookupOutcome) {
        let backends = backends(flags_of_a);
        let rules = Rules { backends: &backends, service: 1, slot, exceptions: &exceptions, first: None };
        (rules.opens(), rules.goes_on(None))
    }

    fn to(index: u32, rule: u8) -> LookupOutcome {
        LookupOutcome::To { index, rule }
    }

    const CHANGED: Slot = Slot::settled(A).changed(B);
    const SERVING: u32 = Backend::FLAG_SERVING;

    #[test]
    fn settled_slot_asks_no_table() {
        let exceptions = FlowExceptions { established: Some(entry(A, 0)), ..FlowExceptions::default() };
        assert_eq!(both(SERVING, Slot::settled(B), exceptions), (to(B, rule::RING), to(B, rule::RING)));
    }

    #[test]
    fn slot_in_transition_sends_new_connections_to_its_owner_and_old_ones_to_the_one_before() {
        assert_eq!(both(SERVING, CHANGED, FlowExceptions::default()), (to(B, rule::CURRENT), to(A, rule::PREVIOUS)));
        let gone = both(0, CHANGED, FlowExceptions::default());
        assert_eq!(gone, (to(B, rule::CURRENT), to(B, rule::PREVIOUS_GONE)));
        let tracked = both(SERVING, CHANGED.settling().clear(Slot::SETTLING), FlowExceptions::default());
        assert_eq!(tracked, (to(B, rule::CURRENT), to(B, rule::RING)));
    }

    #[test]
    fn entries_come_before_the_ring_in_their_order() {
        let established =
            FlowExceptions { established: Some(entry(A, 0)), half_open: Some(entry(B, 0)), seen: Some(entry(B, 0)) };
        assert_eq!(both(SERVING, CHANGED, established), (to(A, rule::ESTABLISHED), to(A, rule::ESTABLISHED)));
        let closing = FlowExceptions { established: Some(entry(A, EXCEPTION_CLOSING)), ..FlowExceptions::default() };
        assert_eq!(both(SERVING, CHANGED, closing), (to(B, rule::CURRENT), to(A, rule::ESTABLISHED)));
        let half_open =
            FlowExceptions { half_open: Some(entry(B, 0)), seen: Some(entry(A, 0)), ..FlowExceptions::default() };
        assert_eq!(both(SERVING, CHANGED, half_open), (to(A, rule::SEEN), to(B, rule::HALF_OPEN)));
        let seen = FlowExceptions { seen: Some(entry(A, 0)), ..FlowExceptions::default() };
        assert_eq!(both(SERVING, CHANGED.settling(), seen), (to(A, rule::SEEN), to(A, rule::SEEN)));
        assert_eq!(both(SERVING, CHANGED, seen), (to(A, rule::SEEN), to(A, rule::PREVIOUS)));
        let settled = CHANGED.settling().clear(Slot::SETTLING);
        assert_eq!(both(SERVING, settled, seen), (to(B, rule::CURRENT), to(B, rule::RING)), "it is worthless by now");
        let other_generation = FlowExceptions {
            established: Some(Exception { generation: 4, ..entry(A, 0) }),
            ..FlowExceptions::default()
        };
        assert_eq!(both(SERVING, CHANGED, other_generation), (to(B, rule::CURRENT), to(A, rule::PREVIOUS)));
    }

    #[test]
    fn flows_of_a_dead_backend_end_as_it_says_and_new_ones_do_not() {
        let established = FlowExceptions { established: Some(entry(A, 0)), ..FlowExceptions::default() };
        for (flag, reason) in
            [(Backend::FLAG_RESET, Reason::BackendDead), (Backend::FLAG_DROP, Reason::BackendDeadDrop)]
        {
            let ends = LookupOutcome::Ends { index: A, reason };
            assert_eq!(both(flag, CHANGED, FlowExceptions::default()), (to(B, rule::CURRENT), ends));
            assert_eq!(both(flag, CHANGED, established), (to(B, rule::CURRENT), ends));
        }
    }

    #[test]
    fn syn_sent_again_follows_its_first_if_that_still_serves_the_service() {
        let (backends, exceptions) = (backends(SERVING), FlowExceptions::default());
        let opens = |service, slot| {
            let first = Some(Syn::new(9, A));
            Rules { backends: &backends, service, slot, exceptions: &exceptions, first }.opens()
        };
        assert_eq!(opens(1, Slot::settled(A)), to(A, rule::SYN_AGAIN));
        assert_eq!(opens(1, Slot::settled(B)), to(B, rule::RING));
        assert_eq!(opens(1, CHANGED), to(A, rule::SYN_AGAIN));
        assert_eq!(opens(2, CHANGED), to(B, rule::CURRENT));
    }

    #[test]
    fn half_open_entry_of_another_syn_is_not_this_flows() {
        let (backends, exceptions) =
            (backends(SERVING), FlowExceptions { half_open: Some(entry(B, 0)), ..FlowExceptions::default() });
        let rules = Rules { backends: &backends, service: 1, slot: CHANGED, exceptions: &exceptions, first: None };
        assert_eq!(rules.goes_on(Some(70)), to(B, rule::HALF_OPEN));
        assert_eq!(rules.goes_on(Some(71)), to(A, rule::PREVIOUS));
    }
}
