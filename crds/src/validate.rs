//! The API server's verdict without an API server: defaults, schema and rules, evaluated over the same schema.

use crate::rules::{self, Check};
use crate::schema::{Kind, root_schema};
use crate::{FieldError, FieldPath};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Fills the defaults of a whole object, as the API server does when it is stored.
pub fn apply_defaults(kind: Kind, object: &mut Value) {
    fill(root_schema(kind), object);
}

/// Equal, where 1 and 1.0 are the same number: an API server writes the one for the other.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// What an API server would refuse in a new object; empty when it would accept. Defaults need not be filled.
pub fn validate(kind: Kind, object: &Value) -> Vec<FieldError> {
    check_all(kind, object, None)
}

/// What an API server would refuse in an update of `old` to `new`.
pub fn validate_update(kind: Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut old = old.clone();
    apply_defaults(kind, &mut old);
    check_all(kind, new, Some(&old))
}

fn check_all(kind: Kind, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut object = object.clone();
    let schema = root_schema(kind);
    apply_defaults(kind, &mut object);
    // the status is the operator's; the server ignores it in a written object
    for part in ["spec", "metadata"] {
        let at = FieldPath::root(part);
        match object.get(part) {
            Some(value) => {
                check(&schema["properties"][part], value, old.and_then(|old| old.get(part)), &at, &mut errors);
            }
            None => errors.push(FieldError::new(at, "is missing; write it")),
        }
    }
    for key in object.as_object().into_iter().flat_map(Map::keys) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            errors.push(FieldError::new(FieldPath::root(key), "unknown field; an object has metadata and spec"));
        }
    }
    apply_rules(schema, &object, old, &FieldPath::default(), &mut errors);
    errors.sort();
    errors.dedup();
    errors
}

/// Fills defaults below a schema node, null counting as absent.
pub(crate) fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(members) = schema.get("properties").and_then(Value::as_object) {
                for (name, member) in members {
                    if map.get(name).is_some_and(Value::is_null) {
                        map.remove(name);
                    }
                    if let (false, Some(default)) = (map.contains_key(name), member.get("default")) {
                        map.insert(name.clone(), default.clone());
                    }
                    if let Some(child) = map.get_mut(name) {
                        fill(member, child);
                    }
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                for item in list {
                    fill(items, item);
                }
            }
        }
        _ => {}
    }
}

fn check(schema: &Value, value: &Value, old: Option<&Value>, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let before = errors.len();
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => object(schema, value, old, at, errors),
        Some("array") => array(schema, value, old, at, errors),
        Some("string") => match value.as_str() {
            Some(text) => string(schema, text, at, errors),
            None => wrong_type("a string", value, at, errors),
        },
        Some("integer") if value.is_i64() || value.is_u64() => number(schema, value, at, errors),
        Some("integer") => wrong_type("a whole number", value, at, errors),
        Some("number") if value.is_number() => number(schema, value, at, errors),
        Some("number") => wrong_type("a number", value, at, errors),
        Some("boolean") if !value.is_boolean() => wrong_type("true or false", value, at, errors),
        None if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) => {
            match (value.as_str(), value.is_i64() || value.is_u64()) {
                (Some(text), _) => string(schema, text, at, errors),
                (None, true) => {}
                (None, false) => wrong_type("a whole number or a string like 500m or 16Gi", value, at, errors),
            }
        }
        _ => {}
    }
    // like the server, which evaluates rules only on values of the right shape
    if errors.len() == before {
        apply_rules(schema, value, old, at, errors);
    }
}

fn apply_rules(schema: &Value, value: &Value, old: Option<&Value>, at: &FieldPath, errors: &mut Vec<FieldError>) {
    for attached in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let Some(rule) = rules::ALL.iter().find(|rule| attached["rule"] == rule.cel) else { continue };
        let holds = match (rule.check, old) {
            (Check::State(holds), _) => holds(value),
            (Check::Transition(holds), Some(old)) => holds(value, old),
            (Check::Transition(_), None) => true,
        };
        if !holds {
            errors.push(FieldError::new(at.clone(), rule.message));
        }
    }
}

fn object(schema: &Value, value: &Value, old: Option<&Value>, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(map) = value.as_object() else { return wrong_type("an object", value, at, errors) };
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        return;
    }
    let none = Map::new();
    let members = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let entries = schema.get("additionalProperties");
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            let text = members.get(name).and_then(|m| m.get("description")).and_then(Value::as_str).unwrap_or("");
            let text = text.split(". ").next().unwrap_or(text).trim_end_matches('.');
            errors.push(FieldError::new(at.key(name), format!("is missing; set it ({text})")));
        }
    }
    if let Some(most) = schema.get("maxProperties").and_then(Value::as_u64).filter(|most| map.len() as u64 > *most) {
        errors.push(FieldError::new(at.clone(), format!("has {} entries; at most {most} are allowed", map.len())));
    }
    for (name, child) in map {
        let path = at.key(name);
        match members.get(name).or(entries) {
            Some(member) => check(member, child, old.and_then(|old| old.get(name)), &path, errors),
            None if schema.get("properties").is_none() => {}
            None => errors.push(FieldError::new(path, unknown_field(name, members))),
        }
    }
}

fn unknown_field(name: &str, members: &Map<String, Value>) -> String {
    let nearest = members.keys().map(|known| (distance(&name.to_lowercase(), &known.to_lowercase()), known)).min();
    match nearest {
        Some((steps, known)) if steps <= 1 + name.len() / 3 => format!("unknown field; did you mean `{known}`?"),
        _ => format!("unknown field; known here: {}", members.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (row[j + 1] + 1).min(row[j] + 1).min(diagonal + usize::from(x != *y));
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

fn array(schema: &Value, value: &Value, old: Option<&Value>, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(list) = value.as_array() else { return wrong_type("a list", value, at, errors) };
    if let Some(most) = schema.get("maxItems").and_then(Value::as_u64).filter(|most| list.len() as u64 > *most) {
        errors.push(FieldError::new(at.clone(), format!("has {} entries; at most {most} are allowed", list.len())));
    }
    if let Some(least) = schema.get("minItems").and_then(Value::as_u64).filter(|least| (list.len() as u64) < *least) {
        errors.push(FieldError::new(at.clone(), format!("has {} entries; at least {least} is needed", list.len())));
    }
    let keys: Vec<&str> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => {
            schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        }
        _ => Vec::new(),
    };
    let is_set = schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set");
    let identity = |item: &Value| -> Value {
        if is_set { item.clone() } else { keys.iter().map(|key| item.get(*key).cloned().unwrap_or_default()).collect() }
    };
    for (index, item) in list.iter().enumerate() {
        let path = at.index(index);
        if (is_set || !keys.is_empty()) && list[..index].iter().any(|other| identity(other) == identity(item)) {
            let what = if is_set { "value".to_owned() } else { keys.join(" and ") };
            errors.push(FieldError::new(
                path.clone(),
                format!("repeats the {what} of an earlier entry; each must be unique"),
            ));
        }
        let old = (!keys.is_empty())
            .then(|| {
                old.and_then(Value::as_array).and_then(|old| old.iter().find(|other| identity(other) == identity(item)))
            })
            .flatten();
        if let Some(items) = schema.get("items") {
            check(items, item, old, &path, errors);
        }
    }
}

fn string(schema: &Value, text: &str, at: &FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.iter().any(|value| value == text)
    {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        errors.push(FieldError::new(at.clone(), format!("`{text}` is not one of {}", allowed.join(", "))));
    }
    let length = text.chars().count() as u64;
    if let Some(most) = schema.get("maxLength").and_then(Value::as_u64).filter(|most| length > *most) {
        errors.push(FieldError::new(at.clone(), format!("has {length} characters; at most {most} are allowed")));
    }
    if schema.get("minLength").and_then(Value::as_u64).is_some_and(|least| length < least) {
        errors.push(FieldError::new(at.clone(), "is empty; write a value or leave the field out"));
    }
    let pattern = schema.get("pattern").and_then(Value::as_str).and_then(|p| Some((p, compiled(p)?)));
    if let Some((pattern, _)) = pattern.filter(|(_, regex)| !regex.is_match(text)) {
        errors.push(FieldError::new(at.clone(), format!("`{text}` {}", pattern_help(pattern))));
    }
}

/// A schema's pattern, compiled once; there are few and they never change.
fn compiled(pattern: &str) -> Option<Regex> {
    static PATTERNS: Mutex<BTreeMap<String, Regex>> = Mutex::new(BTreeMap::new());
    let mut patterns = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(regex) = patterns.get(pattern) {
        return Some(regex.clone());
    }
    let regex = Regex::new(pattern).ok()?;
    patterns.insert(pattern.to_owned(), regex.clone());
    Some(regex)
}

/// What a pattern asks for, in words.
fn pattern_help(pattern: &str) -> String {
    match pattern {
        crate::durations::PATTERN => "is not a duration; write for example 30s, 5m or 1h30m".into(),
        crate::quantity::PATTERN => "is not a quantity; write for example 500m, 4 or 16Gi".into(),
        crate::schema::URI_PATTERN => "is not an address; write file://PATH, pvc://CLAIM/PATH, hf://OWNER/NAME, s3://BUCKET/KEY or gs://BUCKET/KEY".into(),
        r"^[0-9a-f]{64}$" => "is not a sha256; write its 64 lower-case hex digits".into(),
        r"^https?://.+$" => "is not a web address; start it with http:// or https://".into(),
        r"^[0-9]{1,6}/[1-9][0-9]{0,5}$" => "is not a part; write for example 0/2 for the first half".into(),
        other => format!("does not match {other}"),
    }
}

fn number(schema: &Value, value: &Value, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(number) = value.as_f64() else { return };
    if let Some(least) = schema.get("minimum").filter(|least| least.as_f64().is_some_and(|least| number < least)) {
        errors.push(FieldError::new(at.clone(), format!("is {value}; the least is {least}")));
    }
    if let Some(most) = schema.get("maximum").filter(|most| most.as_f64().is_some_and(|most| number > most)) {
        errors.push(FieldError::new(at.clone(), format!("is {value}; the most is {most}")));
    }
}

fn wrong_type(expected: &str, value: &Value, at: &FieldPath, errors: &mut Vec<FieldError>) {
    let found = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
        Value::String(text) => format!("the text `{text}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    errors.push(FieldError::new(at.clone(), format!("should be {expected}, found {found}")));
}
