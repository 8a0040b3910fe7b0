//! The lists are equal to what is refused: every listed field is, every other field of the schema is not.
// samples are compared with the default that they were made from
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)]

use super::*;
use crate::schema::Kind;
use serde_json::json;
use std::collections::BTreeSet;

/// Every field of a schema with one sample per distinguishable value: (path with `[]`, path parts, value).
fn samples(kind: Kind) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    collect("spec", spec_schema(kind), &|inner| json!({"spec": inner}), &mut found);
    found
}

fn collect(path: &str, schema: &Value, wrap: &dyn Fn(Value) -> Value, found: &mut Vec<(String, Value)>) {
    match schema["type"].as_str() {
        Some("object") if schema.get("properties").is_some() => {
            for (name, member) in schema["properties"].as_object().unwrap() {
                collect(&format!("{path}.{name}"), member, &|inner| wrap(json!({name.as_str(): inner})), found);
            }
        }
        Some("array") => {
            let mut inner = Vec::new();
            collect(&format!("{path}[]"), &schema["items"], &|inner| wrap(json!([inner])), &mut inner);
            // a list of plain values is a field itself
            for (inner_path, object) in inner {
                let own = if schema["items"].get("properties").is_some() { inner_path } else { path.to_owned() };
                found.push((own, object));
            }
        }
        _ => found.extend(values(schema).into_iter().map(|value| (path.to_owned(), wrap(value)))),
    }
}

/// Values of a leaf that differ from its default and that the schema accepts.
fn values(schema: &Value) -> Vec<Value> {
    let default = &schema["default"];
    if let Some(allowed) = schema["enum"].as_array() {
        return allowed.iter().filter(|value| *value != default).cloned().collect();
    }
    let text = |pattern: &str| match pattern {
        crate::schema::URI_PATTERN => "file:///data/x",
        crate::durations::PATTERN => "17m",
        crate::quantity::PATTERN => "3Gi",
        p if p.contains("a-f") => "00000000000000000000000000000000000000000000000000000000deadbeef",
        p if p.contains("http") => "https://models.example/v1",
        p if p.contains("/[1-9]") => "1/3",
        _ => "sample",
    };
    let pattern = schema["pattern"].as_str().unwrap_or("");
    vec![match schema["type"].as_str() {
        Some("boolean") => json!(default != &json!(true)),
        Some("integer" | "number") => {
            let (low, high) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            let old = default.as_f64().unwrap_or(f64::NAN);
            let candidates = [old + 1.0, old - 1.0, low.unwrap_or(1.0), high.unwrap_or(2.0), old * 0.5, 3.0];
            let fits =
                |n: &f64| *n != old && n.is_finite() && low.is_none_or(|l| *n >= l) && high.is_none_or(|h| *n <= h);
            let number = candidates.into_iter().find(fits).expect("a number that fits");
            if schema["type"] == "integer" { json!(number as i64) } else { json!(number) }
        }
        Some("object") if schema.get("additionalProperties").is_some() => {
            json!({"key": values(&schema["additionalProperties"])[0]})
        }
        Some("object") => json!({"any": "thing"}),
        _ => json!(text(pattern)),
    }]
}

/// The value that stands at the only path of a sample.
fn leaf(object: &Value) -> &Value {
    match object {
        Value::Object(map) if map.len() == 1 => leaf(map.values().next().unwrap()),
        Value::Array(list) if list.len() == 1 => leaf(&list[0]),
        other => other,
    }
}

/// A list's entries with a matcher of their own, not the one under test.
fn matchers(list: &[Field]) -> Vec<(Field, regex::Regex)> {
    let pattern = |path: &str| {
        let path = path.replace("[]", "").replace('.', "\\.").replace("\\.**\\.", "(\\..*)?\\.");
        regex::Regex::new(&format!("^{path}(\\..*)?$")).unwrap()
    };
    list.iter().map(|field| (*field, pattern(field.path))).collect()
}

/// The entries that mean a sample.
fn meant<'a>(kind: Kind, path: &str, value: &Value, list: &'a [(Field, regex::Regex)]) -> Vec<&'a Field> {
    let plain = path.replace("[]", "");
    let value = value.as_str().unwrap_or("");
    list.iter()
        .filter(|(field, _)| {
            field.kind.is_none_or(|of| of == kind) && (field.values.is_empty() || field.values.contains(&value))
        })
        .filter(|(_, regex)| regex.is_match(&plain))
        .map(|(field, _)| field)
        .collect()
}

/// Holds a list equal to what its function says, over every field of the schemas; and every entry to some field.
fn equal_to_what_is_said(list: &[Field], say: fn(Kind, &Value) -> Vec<FieldError>) {
    let list = matchers(list);
    let mut seen = 0;
    let mut used: BTreeSet<(&str, String)> = BTreeSet::new();
    for kind in Kind::ALL {
        for (path, object) in samples(kind) {
            let entries = meant(kind, &path, leaf(&object), &list);
            let said = say(kind, &object);
            assert_eq!(entries.is_empty(), said.is_empty(), "{kind:?} {path} = {}: {said:?}", leaf(&object));
            for field in entries {
                let value = if field.values.is_empty() { "" } else { leaf(&object).as_str().unwrap() };
                used.insert((field.path, value.to_owned()));
            }
            seen += 1;
        }
    }
    assert!(seen > 400, "only {seen} samples: the walk over the schema is broken");
    for (field, _) in &list {
        for value in if field.values.is_empty() { &[""] } else { field.values } {
            assert!(used.contains(&(field.path, (*value).to_owned())), "{} {value} is in no schema", field.path);
        }
    }
}

#[test]
fn what_is_listed_is_refused_and_nothing_else() {
    equal_to_what_is_said(UNSUPPORTED, refuse_unsupported);
}

#[test]
fn what_only_a_cluster_honours_is_said_and_nothing_else() {
    equal_to_what_is_said(CLUSTER_ONLY, cluster_only);
}

#[test]
fn messages_name_field_and_way_out() {
    // whatever the list holds today
    let list = [
        Field { values: &["S3"], ..field(JOB, "spec.compatibility", "is not reproduced; use None") },
        field(JOB, "spec.rollout.samples", "is not counted; leave it out"),
        field(Some(Kind::EvalRun), "spec.compatibility", "is another kind's"),
    ];
    let object = json!({"spec": {"compatibility": "S3", "rollout": {"samples": 9, "questions": 4}}});
    let errors: Vec<String> = refused(Kind::S3TrainingJob, &object, &list).iter().map(FieldError::to_string).collect();
    assert_eq!(
        errors,
        ["spec.compatibility: `S3` is not reproduced; use None", "spec.rollout.samples: is not counted; leave it out"]
    );
    let other = json!({"spec": {"compatibility": "SearchR1", "rollout": {"questions": 4}}});
    assert_eq!(refused(Kind::S3TrainingJob, &other, &list), []);
}
