//! A YAML document as a tree that has the position of every node and keeps duplicate keys, built
//! from the parser's events.

use std::{collections::BTreeMap, rc::Rc};

use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

/// Maximum depth of nesting; no valid configuration is as deep.
const MAX_DEPTH: usize = 32;
/// Maximum number of nodes in the document with every alias expanded.
const MAX_NODES: usize = 1 << 20;

/// A position: line and column, both starting at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug)]
pub struct YamlNode {
    pub at: Mark,
    pub data: Data,
    /// Number of nodes in this subtree.
    size: usize,
}

#[derive(Debug)]
pub enum Data {
    /// Absent, `~` or `null`.
    Null,
    /// `plain` is true if the scalar is not quoted, so that it may be a number.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Rc<YamlNode>>),
    Mapping(Vec<KeyAndValue>),
}

#[derive(Debug)]
pub struct KeyAndValue {
    pub key: String,
    pub at: Mark,
    pub value: Rc<YamlNode>,
}

impl YamlNode {
    /// Describes the node in a message.
    pub fn kind(&self) -> String {
        match &self.data {
            Data::Null => "empty".to_owned(),
            Data::Scalar { text, plain: true } => text.clone(),
            Data::Scalar { text, plain: false } => format!("{text:?}"),
            Data::Sequence(_) => "a list".to_owned(),
            Data::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

/// Why the text could not be parsed into a tree at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyntaxError {
    pub at: Mark,
    pub reason: String,
}

/// Parses the only document in `text`; a text without a document is a `Null`.
pub fn parse(text: &str) -> Result<Rc<YamlNode>, SyntaxError> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(not_yaml)?;
        builder.event(event, mark(span.start))?;
    }
    Ok(builder.root.unwrap_or_else(|| Rc::new(YamlNode { at: Mark { line: 1, column: 1 }, data: Data::Null, size: 1 })))
}

fn not_yaml(error: ScanError) -> SyntaxError {
    // A plain value that begins with a star is an alias: a common mistake with globs.
    let hint = if error.info().contains("unknown anchor") { "; quote a glob that begins with *" } else { "" };
    SyntaxError { at: mark(*error.marker()), reason: format!("not YAML: {}{hint}", error.info()) }
}

fn mark(marker: Marker) -> Mark {
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
}

#[derive(Default)]
struct Builder {
    root: Option<Rc<YamlNode>>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Rc<YamlNode>>,
    nodes: usize,
    documents: usize,
}

/// A collection that has not ended yet.
struct Open {
    at: Mark,
    anchor: usize,
    data: Data,
    /// A mapping's key whose value has not been read yet.
    key: Option<(String, Mark)>,
    size: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Mark) -> Result<(), SyntaxError> {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    error(at, "a second document begins here: one file, one document")
                } else {
                    Ok(())
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_string(tag.as_deref(), at)?;
                let data = match plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    true => Data::Null,
                    false => Data::Scalar { text: text.into_owned(), plain },
                };
                self.insert(Rc::new(YamlNode { at, data, size: 1 }), anchor, at)
            }
            Event::SequenceStart(_, anchor, tag) => self.open(Data::Sequence(Vec::new()), anchor, tag.as_deref(), at),
            Event::MappingStart(_, anchor, tag) => self.open(Data::Mapping(Vec::new()), anchor, tag.as_deref(), at),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { at, anchor, data, size, .. }) => {
                    self.insert(Rc::new(YamlNode { at, data, size }), anchor, at)
                }
                None => error(at, "not YAML: a collection ends that never began"),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => self.insert(Rc::clone(node), 0, at),
                None => error(at, "an alias of something that is not complete"),
            },
            // The parser sends other events only on request.
            _ => Ok(()),
        }
    }

    fn open(&mut self, data: Data, anchor: usize, tag: Option<&Tag>, at: Mark) -> Result<(), SyntaxError> {
        is_string(tag, at)?;
        if self.open.len() == MAX_DEPTH {
            return error(at, "nested too deeply");
        }
        self.open.push(Open { at, anchor, data, key: None, size: 1 });
        Ok(())
    }

    fn insert(&mut self, node: Rc<YamlNode>, anchor: usize, at: Mark) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        // The nodes inside a collection have already been counted; an alias counts with its whole
        // subtree.
        let counted =
            if node.at == at && !matches!(node.data, Data::Null | Data::Scalar { .. }) { 1 } else { node.size };
        self.nodes = self.nodes.saturating_add(counted);
        if self.nodes > MAX_NODES {
            return error(at, "too large with its aliases written out");
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.size = parent.size.saturating_add(node.size);
        match &mut parent.data {
            Data::Sequence(items) => items.push(node),
            Data::Mapping(entries) => match parent.key.take() {
                Some((key, at)) => entries.push(KeyAndValue { key, at, value: node }),
                None => parent.key = Some((key_text(&node, at)?, at)),
            },
            Data::Null | Data::Scalar { .. } => return error(at, "not YAML: a scalar holds nothing"),
        }
        Ok(())
    }
}

fn key_text(node: &YamlNode, at: Mark) -> Result<String, SyntaxError> {
    match &node.data {
        Data::Scalar { text, .. } => Ok(text.clone()),
        Data::Null => Ok("null".to_owned()),
        Data::Sequence(_) | Data::Mapping(_) => error(at, "a list or mapping can't be a key"),
    }
}

/// Whether a tag makes a plain scalar a string. Other tags of the core schema change nothing; all
/// other tags are refused.
fn is_string(tag: Option<&Tag>, at: Mark) -> Result<bool, SyntaxError> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix() == "str"),
        Some(tag) => error(at, &format!("the tag {tag} means nothing here")),
    }
}

fn error<T>(at: Mark, reason: &str) -> Result<T, SyntaxError> {
    Err(SyntaxError { at, reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_repeat_what_was_anchored() {
        let Data::Mapping(entries) = &parse("a: &x [1, 2]\nb: *x\n").unwrap().data else { panic!("no mapping") };
        assert!(Rc::ptr_eq(&entries[0].value, &entries[1].value));
    }

    #[test]
    fn a_tower_of_aliases_is_refused_instead_of_written_out() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for floor in 1..12 {
            let below = floor - 1;
            let aliases = vec![format!("*a{below}"); 10].join(", ");
            text.push_str(&format!("a{floor}: &a{floor} [{aliases}]\n"));
        }
        assert_eq!(parse(&text).unwrap_err().reason, "too large with its aliases written out");
    }

    #[test]
    fn a_deep_nest_is_refused() {
        for text in ["[".repeat(40), "- ".repeat(100_000), "{a: ".repeat(60)] {
            assert!(parse(&text).is_err());
        }
    }
}
