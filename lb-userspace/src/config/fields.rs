//! Reads values out of a YAML tree and records every mistake with its position, instead of stopping
//! at the first.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    problem::{Problem, Problems},
    yaml::{Data, KeyAndValue, Mark, YamlNode},
};

/// Collects the mistakes of one file.
pub struct DocumentReader {
    file: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

impl DocumentReader {
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), problems: RefCell::default() }
    }

    pub fn root<'a>(&'a self, node: &'a YamlNode) -> Value<'a> {
        Value { reader: self, key: String::new(), at: node.at, node }
    }

    pub fn problem(&self, at: Mark, key: &str, reason: impl Display) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            key: key.to_owned(),
            reason: reason.to_string(),
        });
    }

    /// Returns `value` if there was no mistake.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        let mut problems = self.problems.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => {
                problems.sort_by_key(|problem| (problem.line, problem.column));
                Err(Problems(problems))
            }
        }
    }
}

/// A value and its position.
#[derive(Clone)]
pub struct Value<'a> {
    reader: &'a DocumentReader,
    pub key: String,
    pub at: Mark,
    node: &'a YamlNode,
}

impl<'a> Value<'a> {
    /// Records that this value is wrong. Returns `None`, for the caller to return.
    pub fn problem<T>(&self, reason: impl Display) -> Option<T> {
        self.reader.problem(self.at, &self.key, reason);
        None
    }

    /// Records the reason if this value breaks `rule`. Returns whether it keeps the rule.
    pub fn holds(&self, rule: Result<(), String>) -> bool {
        rule.map_err(|reason| self.problem::<()>(reason)).is_ok()
    }

    /// Records a mistake in the value of another `key`, but at this value's position.
    pub fn problem_of(&self, key: &str, reason: impl Display) {
        self.reader.problem(self.at, key, reason);
    }

    pub fn is_null(&self) -> bool {
        matches!(self.node.data, Data::Null)
    }

    /// The keys of a mapping. Keys not in `known` and duplicate keys are recorded as mistakes.
    pub fn fields(&self, known: &[&str]) -> Option<Fields<'a>> {
        let Data::Mapping(entries) = &self.node.data else {
            let keys = known.join(", ");
            return self.problem(format!("must be a mapping with the keys {keys}, is {}", self.node.kind()));
        };
        let mut first: BTreeMap<&str, &KeyAndValue> = BTreeMap::new();
        for entry in entries {
            if let Some(earlier) = first.get(entry.key.as_str()) {
                let line = earlier.at.line;
                self.reader.problem(entry.at, &self.child(&entry.key), format!("is given twice: first in line {line}"));
                continue;
            }
            first.insert(&entry.key, entry);
            if !known.contains(&entry.key.as_str()) {
                self.reader.problem(entry.at, &self.child(&entry.key), unknown(&entry.key, known));
            }
        }
        Some(Fields { of: self.clone(), entries: first })
    }

    /// Like [`Value::fields`], but an empty value counts as `{}`.
    pub fn fields_or_empty(&self, known: &[&str]) -> Option<Fields<'a>> {
        match self.is_null() {
            true => Some(Fields { of: self.clone(), entries: BTreeMap::new() }),
            false => self.fields(known),
        }
    }

    pub fn items(&self) -> Option<Vec<Value<'a>>> {
        let Data::Sequence(items) = &self.node.data else {
            return self.problem(format!("must be a list, is {}", self.node.kind()));
        };
        let item = |(index, node): (usize, &'a std::rc::Rc<YamlNode>)| Value {
            reader: self.reader,
            key: format!("{}[{index}]", self.key),
            at: node.at,
            node,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The text of any scalar, as it is written.
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.data {
            Data::Scalar { text, .. } => Some(text),
            Data::Null => self.problem("has no value"),
            Data::Sequence(_) | Data::Mapping(_) => {
                self.problem(format!("must be a single value, is {}", self.node.kind()))
            }
        }
    }

    pub fn integer<N>(&self, range: RangeInclusive<N>) -> Option<N>
    where
        N: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        self.integer_because(range, "")
    }

    /// Like [`Value::integer`]; `why` is the reason for the upper bound.
    pub fn integer_because<N>(&self, range: RangeInclusive<N>, why: &str) -> Option<N>
    where
        N: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        let must = || format!("must be {} to {}{why}, is {}", range.start(), range.end(), self.node.kind());
        let Data::Scalar { text, plain: true } = &self.node.data else {
            return self.problem(format!(
                "must be a number, {} to {}, is {}",
                range.start(),
                range.end(),
                self.node.kind()
            ));
        };
        let Ok(number) = text.parse::<i128>() else {
            return self.problem(format!("must be a number, {} to {}, is {text}", range.start(), range.end()));
        };
        match N::try_from(number).ok().filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => self.problem(must()),
        }
    }

    /// A duration with its unit, as in `2s`, `500ms`, `15m`.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text()?;
        let Ok(duration) = humantime::parse_duration(text) else {
            return self
                .problem(format!("must be a time with its unit, as in 500ms, 2s, 15m or 2h, is {}", self.node.kind()));
        };
        match range.contains(&duration) {
            true => Some(duration),
            false => {
                let [from, to] = [range.start(), range.end()].map(|bound| time(*bound));
                self.problem(format!("must be {from} to {to}, is {text}"))
            }
        }
    }

    /// The value that `words` pairs with this value's text.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let hint = closest(text, &all).map(|word| format!("; did you mean {word}?")).unwrap_or_default();
                self.problem(format!("must be one of {}, is {}{hint}", all.join(", "), self.node.kind()))
            }
        }
    }

    fn child(&self, key: &str) -> String {
        match self.key.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.key),
        }
    }
}

/// The keys of a mapping.
pub struct Fields<'a> {
    of: Value<'a>,
    entries: BTreeMap<&'a str, &'a KeyAndValue>,
}

impl<'a> Fields<'a> {
    /// The value of `key`; a missing value is a mistake.
    pub fn required(&self, key: &str) -> Option<Value<'a>> {
        match self.given(key) {
            Some(value) if value.is_null() => value.problem("has no value"),
            Some(value) => Some(value),
            None => {
                self.of.reader.problem(self.of.at, &self.of.child(key), "is missing");
                None
            }
        }
    }

    /// The value of `key`, if it is there and not null.
    pub fn optional(&self, key: &str) -> Option<Value<'a>> {
        self.given(key).filter(|value| !value.is_null())
    }

    /// The value of `key` if it is there at all.
    pub fn given(&self, key: &str) -> Option<Value<'a>> {
        let entry = self.entries.get(key)?;
        let at = if matches!(entry.value.data, Data::Null) { entry.at } else { entry.value.at };
        Some(Value { reader: self.of.reader, key: self.of.child(key), at, node: &entry.value })
    }

    /// The value of `key` as converted by `read`, or `default` if it is not there; `None` after a
    /// mistake.
    pub fn or<T>(&self, key: &str, default: T, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        match self.optional(key) {
            Some(value) => read(&value),
            None => Some(default),
        }
    }

    /// The mapping itself.
    pub fn whole(&self) -> &Value<'a> {
        &self.of
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    match closest(key, known) {
        Some(word) => format!("unknown key; did you mean {word}?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// The word in `words` that `text` may be a misspelling of.
fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '_'], "");
    let text = plain(text);
    let (distance, word) = words.iter().map(|word| (distance(&text, &plain(word)), *word)).min()?;
    (distance <= 2 && distance * 2 < word.len()).then_some(word)
}

/// Levenshtein distance of two short words.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return a.len();
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let here = (diagonal + usize::from(from != to)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A duration as it is written in the file: humantime reads `30d`, but writes `30days`.
pub fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace("days", "d").replace("day", "d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in
            [("", "abc", 3), ("abc", "", 3), ("port", "prot", 2), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["ringSize", "drainTimeout", "port"];
        for (text, word) in [
            ("ring_size", Some("ringSize")),
            ("drainTimout", Some("drainTimeout")),
            ("ports", Some("port")),
            ("zebra", None),
        ] {
            assert_eq!(closest(text, &known), word, "{text}");
        }
    }
}
