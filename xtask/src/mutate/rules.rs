//! The rules of the ring, and for each the edit that removes it from the sources.

use crate::tree::Edit;

pub struct Rule {
    pub name: &'static str,
    pub edit: Edit,
}

const fn rule(name: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Rule {
    Rule { name, edit: Edit { file, from, to } }
}

const PROGRAM: &str = "lb-ebpf/src/dsr.rs";
const SLOT: &str = "lb-common/src/slot.rs";
const JUDGE: &str = "lb-userspace/src/dataplane/settle/judge.rs";
const FAMILY: &str = "lb-userspace/src/dataplane/settle/family.rs";
const SETTLER: &str = "lb-userspace/src/dataplane/settle/settler.rs";

pub const RULES: &[Rule] = &[
    rule(
        "a miss goes to `previous`",
        PROGRAM,
        "    work.backend = slot.previous();\n    work.rule = rule::PREVIOUS;\n",
        "    work.rule = rule::PREVIOUS;\n",
    ),
    rule(
        "a miss is noted in SEEN",
        PROGRAM,
        "    if work.quoted == 0 {\n        note_seen::<V>(ifindex, now_ns, work);\n    }\n",
        "    let _ = (ifindex, now_ns, note_seen::<V>);\n",
    ),
    rule("a SYN is noted in HALF_OPEN", PROGRAM, "    V::half_open().put(&work.from, &work.exception)\n", "    true\n"),
    rule(
        "a SYN of another connection with the same tuple is noted",
        PROGRAM,
        "atomic::replace(&raw mut seen.sequence, before, work.tcp.sequence)",
        "atomic::replace(&raw mut seen.sequence, before, before)",
    ),
    rule(
        "a half-open flow is confirmed by its sequence number",
        PROGRAM,
        "(seen.is_confirmed_by(work.tcp.sequence) || work.quoted != 0)",
        "true",
    ),
    rule(
        "a confirmed flow moves to ESTABLISHED",
        PROGRAM,
        "                        confirm::<V>(ifindex, work);\n",
        "                        let _ = confirm::<V>;\n",
    ),
    rule(
        "ESTABLISHED is asked first",
        PROGRAM,
        "    if let Some(entry) = look::<V, _>(Slot::IN_ESTABLISHED, V::established(), work) {",
        "    if let Some(entry) = look::<V, _>(Slot::IN_ESTABLISHED, V::established(), work).filter(|_| work.quoted \
        != 0) {",
    ),
    rule(
        "a SYN sent again follows its first",
        PROGRAM,
        "first_syn(work).filter(|first| may(first.owner(), work))",
        "first_syn(work).filter(|first| may(first.owner(), work) && work.quoted != 0)",
    ),
    rule(
        "a SYN goes where its flow is in ESTABLISHED",
        PROGRAM,
        "    if there.flags & EXCEPTION_CLOSING != 0 {\n        return Already::Closing;",
        "    if work.quoted == 0 {\n        return Already::Closing;",
    ),
    rule(
        "a SYN goes where its flow was seen",
        PROGRAM,
        "let is_asked = there.backend == slot.previous() || slot.has(Slot::SETTLING);",
        "let is_asked = work.quoted != 0;",
    ),
    rule(
        "a SYN takes the tuple of a flow that is closing",
        PROGRAM,
        "    if seen.is_some() || established.is_some() {\n        V::established().forget(&work.from);\n    }\n",
        "",
    ),
    rule(
        "data restores what a reset shortened",
        PROGRAM,
        "entry.flags &= !EXCEPTION_CLOSING;",
        "entry.flags |= EXCEPTION_CLOSING;",
    ),
    rule(
        "each packet restarts an entry's idle time",
        PROGRAM,
        "        entry.last_seen_ns = now_ns;\n    }\n    if tcp.has",
        "        let _ = now_ns;\n    }\n    if tcp.has",
    ),
    rule(
        "a SYN sent again goes only to a backend that serves",
        PROGRAM,
        "maps::backend(index).is_some_and(|backend| backend.is_serving() && backend.service == service)",
        "maps::backend(index).is_some_and(|backend| backend.service == service)",
    ),
    rule(
        "while a slot settles SEEN is asked",
        PROGRAM,
        "    if slot.has(Slot::SETTLING)\n        && let",
        "    if slot.has(Slot::SETTLING) && work.quoted != 0\n        && let",
    ),
    rule(
        "what is written while the collector looks is marked",
        PROGRAM,
        "if slot.has(Slot::COLLECTING) { flag | Slot::WRITTEN } else { flag };",
        "flag;",
    ),
    rule(
        "a slot says in which tables it has entries",
        PROGRAM,
        "if slot.has(Slot::COLLECTING) { flag | Slot::WRITTEN } else { flag };",
        "if slot.has(Slot::COLLECTING) { Slot::WRITTEN } else { flag & Slot::WRITTEN };",
    ),
    rule(
        "a second change keeps `previous`",
        SLOT,
        "        Self::new(owner, self.previous(), flags)\n",
        "        Self::new(owner, self.current(), flags)\n",
    ),
    rule(
        "a change back leaves the slot tracked",
        SLOT,
        "if owner == self.previous() { self.flags() | Self::TRACKED } else { self.flags() }",
        "self.flags()",
    ),
    rule(
        "a previous owner that is gone leaves the slot tracked",
        SLOT,
        "return Self::new(self.current(), self.current(), self.flags() | Self::TRACKED);",
        "return Self::new(self.current(), self.current(), self.flags());",
    ),
    rule(
        "a slot settles when its time has come",
        JUDGE,
        "Some(elapsed) if elapsed >= settle_ns && !previous",
        "Some(elapsed) if elapsed >= settle_ns / 4 && !previous",
    ),
    rule(
        "a draining `previous` keeps its slots",
        JUDGE,
        "elapsed >= settle_ns && !previous.is_some_and(keeps_its_slots) =>",
        "elapsed >= settle_ns && !previous.is_some_and(|p| keeps_its_slots(p) && p.family == 0) =>",
    ),
    rule(
        "what was seen is established when its slot settles",
        FAMILY,
        "if is_former && !is_over &&",
        "if is_former && !is_over && entry.slot == u32::MAX &&",
    ),
    rule("entries that differ from the ring stay", JUDGE, "is_quiet && entry.backend == slot.current(),", "is_quiet,"),
    rule(
        "a slot with entries stays tracked",
        SETTLER,
        "            let is_free = left == 0\n                && slot == empty",
        "            let is_free = left < u64::MAX\n                && slot == empty",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_in_its_file_once() {
        for Rule { name, edit } in RULES {
            let source = std::fs::read_to_string(crate::exec::root().join(edit.file)).unwrap();
            let mutant = edit.apply(&source).unwrap();
            assert_ne!(mutant, source, "the edit for \"{name}\" changes nothing");
        }
    }
}
