use serde_json::Value;

use super::super::{document, example, health, limits, schema, service, tunnel};

/// The words of a schema, which schemars keeps in `enum` without and in `const` with a description.
fn words(of: &Value) -> Vec<&str> {
    let listed = of["enum"].as_array().into_iter().flatten().chain(of.get("const")).filter_map(Value::as_str);
    listed.chain(of["oneOf"].as_array().into_iter().flatten().flat_map(words)).collect()
}

/// Whether `value` fits `of`, by the keywords that our schema has except for patterns and formats.
fn fits(root: &Value, of: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    of.as_object().unwrap().iter().all(|(keyword, with)| match keyword.as_str() {
        "$ref" => fits(root, &root["$defs"][with.as_str().unwrap().rsplit('/').next().unwrap()], value),
        "anyOf" | "oneOf" => with.as_array().unwrap().iter().any(|one| fits(root, one, value)),
        "type" => match with {
            Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
            name => is(name.as_str().unwrap()),
        },
        "enum" => with.as_array().unwrap().contains(value),
        "const" => with == value,
        "minimum" => value.as_u64().is_none_or(|number| number >= with.as_u64().unwrap()),
        "maximum" => value.as_u64().is_none_or(|number| number <= with.as_u64().unwrap()),
        "required" => with.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(root, with, item))),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= with.as_u64().unwrap()),
        "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= with.as_u64().unwrap()),
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(key, value)| with.get(key).is_some_and(|of| fits(root, of, value)))
        }),
        "$schema" | "$defs" | "title" | "description" | "additionalProperties" | "format" | "pattern" => true,
        "default" | "x-default" => true,
        other => panic!("keyword {other}"),
    })
}

#[test]
fn the_example_fits_the_schema_and_a_damaged_one_does_not() {
    let schema = schema();
    let example: Value = serde_saphyr::from_str(&example().unwrap()).unwrap();
    assert!(fits(&schema, &schema, &example));
    for (path, value) in [
        ("/services/0/port", Value::from(0)),
        ("/services/0/mode", Value::from("dsr")),
        ("/interfaces", Value::from("eth0")),
        ("/services/0/health/http", serde_json::json!({ "paht": "/" })),
        ("/services/0/backends/0", serde_json::json!({ "port": 80 })),
    ] {
        let mut damaged = example.clone();
        *damaged.pointer_mut(path).unwrap() = value;
        assert!(!fits(&schema, &schema, &damaged), "{path}");
    }
}

#[test]
fn the_schema_names_the_keys_and_words_that_the_reader_knows() {
    let schema = schema();
    for (of, keys) in [
        (&schema, &document::KEYS[..]),
        (&schema["$defs"]["Snat"], &document::SNAT_KEYS),
        (&schema["$defs"]["Timeouts"], &document::TIMEOUT_KEYS),
        (&schema["$defs"]["Admin"], &document::ADMIN_KEYS),
        (&schema["$defs"]["Tunnel"], &tunnel::KEYS),
        (&schema["$defs"]["FlowTables"], &document::FLOW_TABLE_KEYS),
        (&schema["$defs"]["Limits"], &limits::KEYS),
        (&schema["$defs"]["Service"], &service::KEYS),
        (&schema["$defs"]["Backend"], &service::BACKEND_KEYS),
        (&schema["$defs"]["Health"], &health::KEYS),
        (&schema["$defs"]["Http"], &health::HTTP_KEYS),
    ] {
        let mut known = keys.to_vec();
        known.sort_unstable();
        let mut named: Vec<&str> = of["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        named.sort_unstable();
        assert_eq!(named, known);
        assert_eq!(of["additionalProperties"], false);
    }
    for (of, known) in [
        ("XdpMode", document::XDP_MODES.map(|(word, _)| word).to_vec()),
        ("Mode", service::MODES.map(|(word, _)| word).to_vec()),
        ("OnDead", service::ON_DEAD.map(|(word, _)| word).to_vec()),
        ("Source", service::SOURCES.map(|(word, _)| word).to_vec()),
        ("Affinity", service::AFFINITIES.map(|(word, _)| word).to_vec()),
        ("AdminState", service::STATES.map(|(word, _)| word).to_vec()),
    ] {
        assert_eq!(words(&schema["$defs"][of]), known, "{of}: {}", schema["$defs"][of]);
    }
    assert_eq!(schema["required"], serde_json::json!(["version", "interfaces"]));
    assert_eq!(schema["$defs"]["Service"]["required"], serde_json::json!(["name", "vips", "port", "backends"]));
    assert_eq!(schema["$defs"]["Service"]["properties"]["port"]["maximum"], 65535);
    let sizes = &schema["$defs"]["FlowTables"]["properties"]["seen"];
    assert_eq!(sizes["minimum"], *document::FLOW_TABLE_SIZES.start());
    assert_eq!(sizes["maximum"], *document::FLOW_TABLE_SIZES.end());
    assert_eq!(schema["properties"]["hashSeed"]["pattern"], "^[0-9a-fA-F]{32}$");
}
