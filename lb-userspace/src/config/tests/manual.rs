//! The tables of keys in docs/operations.md, made from the schema.

use std::{collections::BTreeMap, env, fs, path::Path};

use serde_json::Value;

use super::super::{parse, schema};

/// The sections of the manual with a table of keys, and the schema's types that these are of.
const SECTIONS: [(&str, Option<&str>); 4] = [
    ("### Node", None),
    ("### Service", Some("Service")),
    ("### Backend", Some("Backend")),
    ("## Health checks", Some("Health")),
];
/// A key whose own keys have a table of their own.
const APART: &str = "health";

/// A key, as one row of a table shows it.
struct Row {
    /// With the keys around it: `snat.ports`.
    path: String,
    default: Value,
    is_time: bool,
    text: String,
}

impl Row {
    fn line(&self) -> String {
        format!("| `{}` | {}", self.path, self.text)
    }
}

fn definition<'a>(root: &'a Value, name: &str) -> &'a Value {
    &root["$defs"][name]
}

/// What a property refers to, or itself.
fn resolved<'a>(root: &'a Value, property: &'a Value) -> &'a Value {
    let one_of = property["anyOf"].as_array().into_iter().flatten();
    let reference = one_of.chain([property]).find_map(|one| one["$ref"].as_str());
    reference.map_or(property, |reference| definition(root, reference.rsplit('/').next().unwrap()))
}

/// The words of an enumeration, each with its meaning if it has one.
fn words(of: &Value) -> Vec<(String, Option<String>)> {
    let plain = of["enum"].as_array().into_iter().flatten().map(|word| (word, None));
    let one_of = of["oneOf"].as_array().into_iter().flatten();
    let described = one_of.flat_map(|one| {
        let listed = one["enum"].as_array().into_iter().flatten().chain(one.get("const"));
        listed.map(|word| (word, one["description"].as_str().map(str::to_owned)))
    });
    plain.chain(described).map(|(word, meaning)| (word.as_str().unwrap().to_owned(), meaning)).collect()
}

fn values(root: &Value, property: &Value) -> String {
    let of = resolved(root, property);
    let words = words(of);
    let is_described = !words.is_empty() && words.iter().all(|(_, meaning)| meaning.is_some());
    let description = property["description"].as_str().unwrap_or_default().replace('\n', " ");
    let (values, separator) = if is_described {
        let all: Vec<String> = words
            .iter()
            .map(|(word, meaning)| format!("`{word}`: {}", meaning.as_deref().unwrap_or_default()))
            .collect();
        (all.join(". ").replace('\n', " "), "; ")
    } else if !words.is_empty() {
        (words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", "), "; ")
    } else {
        match (property["minimum"].as_u64(), property["maximum"].as_u64()) {
            (Some(from), Some(to)) if from == to => (format!("`{from}`"), ": "),
            (Some(from), Some(to)) => (format!("{from} to {to}"), ": "),
            _ => (String::new(), ""),
        }
    };
    match (values.is_empty(), description.is_empty()) {
        (_, true) => values,
        (true, false) => description,
        (false, false) => format!("{values}{separator}{description}"),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn default(of: &Value, key: &str, property: &Value) -> String {
    if of["required"].as_array().into_iter().flatten().any(|required| required == key) {
        return "required".to_owned();
    }
    let more = property["x-default"].as_str();
    match (property.get("default"), more) {
        (Some(value), None) => format!("`{}`", shown(value)),
        (Some(value), Some(more)) if more.starts_with("or ") => format!("`{}`, {more}", shown(value)),
        (Some(value), Some(more)) => format!("`{}`: {more}", shown(value)),
        (None, Some(more)) => more.to_owned(),
        (None, None) => panic!("{key} has no default"),
    }
}

fn rows(root: &Value, of: &Value, before: &str) -> Vec<Row> {
    let mut all = Vec::new();
    for (key, property) in of["properties"].as_object().unwrap() {
        let path = format!("{before}{key}");
        let inner = resolved(root, property);
        let has_keys = inner["properties"].as_object().is_some_and(|keys| !keys.is_empty()) && key != APART;
        if has_keys {
            all.extend(rows(root, inner, &format!("{path}.")));
        }
        if !has_keys || property.get("x-default").is_some() {
            let text = format!("{} | {} |", default(of, key, property), values(root, property));
            let is_time = property.to_string().contains("#/$defs/Time");
            all.push(Row { path, default: property["default"].clone(), is_time, text });
        }
    }
    all
}

fn sections() -> Vec<(&'static str, Vec<Row>)> {
    let root = schema();
    let of = |name: Option<&str>| name.map_or(&root, |name| definition(&root, name));
    SECTIONS.map(|(heading, name)| (heading, rows(&root, of(name), ""))).into()
}

#[test]
fn manual_has_a_row_for_each_key_as_the_schema_describes_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let manual = fs::read_to_string(&file).unwrap();
    let (mut now, mut wrong) = (String::new(), Vec::new());
    let mut expected: BTreeMap<(&str, String), String> = BTreeMap::new();
    for (heading, rows) in sections() {
        expected.extend(rows.into_iter().map(|row| ((heading, row.path.clone()), row.line())));
    }
    let mut section = "";
    for line in manual.lines() {
        if line.starts_with("## ") || line.starts_with("### ") {
            section = SECTIONS.iter().map(|(heading, _)| *heading).find(|heading| *heading == line).unwrap_or_default();
        }
        let key = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).filter(|_| !section.is_empty());
        let is = key.and_then(|key| expected.remove(&(section, key.to_owned())));
        match (&is, key) {
            (Some(row), _) if row != line => wrong.push(format!("is:     {line}\nshould: {row}")),
            (None, Some(key)) => wrong.push(format!("{section}: the file has no key {key}")),
            _ => {}
        }
        now += is.as_deref().unwrap_or(line);
        now.push('\n');
    }
    wrong.extend(expected.into_iter().map(|((section, _), row)| format!("{section} lacks: {row}")));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, now).unwrap();
    }
    assert!(
        wrong.is_empty(),
        "docs/operations.md (UPDATE_DOCS=1 puts rows right that are there):\n{}",
        wrong.join("\n")
    );
}

/// A file with this key of a section set, or without it.
fn file(section: &str, path: &str, value: Option<&str>) -> String {
    let (outer, inner) = path.split_once('.').map_or((path, None), |(outer, inner)| (outer, Some(inner)));
    let set = match (value, inner) {
        (None, None) => String::new(),
        (None, Some(_)) => format!("{outer}: {{}}"),
        (Some(value), None) => format!("{outer}: {value}"),
        (Some(value), Some(inner)) => format!("{outer}: {{ {inner}: {value} }}"),
    };
    let comma = if set.is_empty() { "" } else { ", " };
    let backend = if section == "### Backend" { format!("{comma}{set}") } else { String::new() };
    let backends = format!("backends: [{{ address: 10.0.0.2, port: 80{backend} }}]");
    let service = match section {
        "### Service" => format!("{comma}{set}"),
        "## Health checks" if outer == "http" => format!(", health: {{ {set} }}"),
        "## Health checks" => format!(", health: {{ tcp: {{}}{comma}{set} }}"),
        _ => String::new(),
    };
    let node = if section == "### Node" { set.as_str() } else { "" };
    format!(
        "version: 1\ninterfaces: [eth0]\n{node}\nservices: [{{ name: a, vips: [192.0.2.1], port: 80{service}, \
        {backends} }}]\n"
    )
}

#[test]
fn every_default_of_the_schema_is_what_the_reader_takes() {
    let mut count = 0;
    for (section, rows) in sections() {
        for row in rows.iter().filter(|row| !row.default.is_null()) {
            let value = row.default.to_string();
            let read = |value| {
                parse(&file(section, &row.path, value), Path::new("weir.yaml")).map_err(|error| error.to_string())
            };
            let without = read(None);
            assert!(without.is_ok(), "{section} {}: {without:?}", row.path);
            assert_eq!(read(Some(&value)), without, "{section} {}: {value}", row.path);
            count += 1;
        }
    }
    assert!(count > 25, "only {count} defaults");
}

#[test]
fn bounds_of_times_that_the_schema_states_are_the_readers() {
    let mut count = 0;
    for (section, rows) in sections() {
        for row in rows.iter().filter(|row| row.is_time) {
            let said = parse(&file(section, &row.path, Some("9999d")), Path::new("weir.yaml")).unwrap_err().to_string();
            let stated = row.text.split(" | ").nth(1).unwrap().split([':', ';', ',']).next().unwrap();
            // The interval, which is the other bound of the time-out, is a key as well.
            let (from, to) = stated.split_once(" to ").unwrap();
            let bounds = if to == "the interval" {
                format!("must be {from} to ")
            } else {
                format!("must be {from} to {to}, is")
            };
            assert!(said.contains(&bounds), "{}: {stated:?}, but {said}", row.path);
            count += 1;
        }
    }
    assert_eq!(count, 7);
}
