//! What is committed beside the code is what the code makes, and is what an API server wants.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_crds::{
    GROUP, Kind, REASONS, VERSION, api_markdown, crd, crd_without_cel, crd_yaml, reasons_markdown, spec_schema,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn same_as_committed(file: &Path, text: &str, command: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file, text).unwrap();
    }
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    assert!(committed == text, "{} is out of date; run `cargo run -p s3-operator -- {command}`", file.display());
}

#[test]
fn manifests_are_committed_as_made() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    for kind in Kind::ALL {
        same_as_committed(
            &folder.join(kind.file_name()),
            &crd_yaml(kind, true).unwrap(),
            "crds --output crds/generated",
        );
    }
}

#[test]
fn reasons_are_documented_as_catalogued() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
    same_as_committed(&file, &reasons_markdown(), "explain-reasons --output docs/reasons.md");
}

#[test]
fn fields_are_documented_as_typed() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let page = api_markdown();
    same_as_committed(&file, &page, "explain-api --output docs/api.md");
    // no field is missing, and no link leads nowhere
    let mut fields = BTreeSet::new();
    for kind in Kind::ALL {
        walk(crd(kind), &mut fields, &mut BTreeSet::new());
    }
    let root = ["apiVersion", "kind", "metadata", "spec", "status"];
    for field in fields.iter().filter(|field| !root.contains(&field.as_str())) {
        assert!(page.contains(&format!("\n| `{field}` |")), "{field}");
    }
    let anchors: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|title| title.to_lowercase().replace(['.', '[', ']', '(', ')'], "").replace(' ', "-"))
        .collect();
    let link = regex::Regex::new(r"\(#([^)]+)\)").unwrap();
    let links: BTreeSet<&str> = link.captures_iter(&page).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(links.len() > 30, "only {} links", links.len());
    for link in links {
        assert!(anchors.contains(link), "#{link}");
    }
}

#[test]
fn names_are_those_of_the_group() {
    for kind in Kind::ALL {
        let spec = &crd(kind)["spec"];
        assert_eq!(spec["group"], GROUP);
        assert_eq!(spec["names"]["kind"], kind.name());
        assert_eq!(spec["versions"][0]["name"], VERSION);
        assert_eq!(crd(kind)["metadata"]["name"], format!("{}.{GROUP}", spec["names"]["plural"].as_str().unwrap()));
        assert_eq!(spec["scope"], "Namespaced");
    }
}

/// The API server's structural rules: a type at every node, nothing it does not know, defaults that fit.
fn structural(at: &str, schema: &Value, faults: &mut Vec<String>) {
    let known: BTreeSet<&str> = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ]
    .into();
    let map = schema.as_object().unwrap_or_else(|| panic!("{at} is no schema: {schema}"));
    for key in map.keys().filter(|key| !known.contains(key.as_str())) {
        faults.push(format!("{at}: {key}"));
    }
    let int_or_string = map.get("x-kubernetes-int-or-string").is_some();
    if map.contains_key("type") == int_or_string {
        faults.push(format!("{at}: has no type, or one beside int-or-string"));
    }
    if map.contains_key("properties") && map.contains_key("additionalProperties") {
        faults.push(format!("{at}: properties beside additionalProperties"));
    }
    let format = map.get("format").and_then(Value::as_str).unwrap_or("int64");
    if !["int32", "int64", "double", "date-time"].contains(&format) {
        faults.push(format!("{at}: format {format}"));
    }
    if map.get("type") == Some(&"array".into()) && !map.contains_key("items") {
        faults.push(format!("{at}: list without items"));
    }
    let is_item = at.ends_with("[]");
    if !is_item
        && !int_or_string
        && !at.contains(".tolerations")
        && !map.contains_key("description")
        && at.matches('.').count() > 0
    {
        faults.push(format!("{at}: no description for `kubectl explain`"));
    }
    for (name, member) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        structural(&format!("{at}.{name}"), member, faults);
    }
    if let Some(items) = map.get("items") {
        structural(&format!("{at}[]"), items, faults);
    }
    if let Some(entries) = map.get("additionalProperties").filter(|entries| entries.is_object()) {
        structural(&format!("{at}[]"), entries, faults);
    }
}

#[test]
fn schemas_are_structural_and_documented() {
    for kind in Kind::ALL {
        let root = &crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert_eq!(root["required"], serde_json::json!(["spec"]));
        let mut faults = Vec::new();
        for part in ["spec", "status"] {
            structural(part, &root["properties"][part], &mut faults);
        }
        assert!(faults.is_empty(), "{kind:?}:\n{}", faults.join("\n"));
    }
}

/// The API server evaluates a node's rules on its default as it is written, so nothing may be missing in it.
fn complete_defaults(at: &str, schema: &Value, faults: &mut Vec<String>) {
    let members = schema.get("properties").and_then(Value::as_object);
    if let (Some(default), Some(members), true) =
        (schema.get("default"), members, schema.get("x-kubernetes-validations").is_some())
    {
        for (name, _) in members.iter().filter(|(_, member)| member.get("default").is_some()) {
            if default.get(name).is_none() {
                faults.push(format!("{at}: its default lacks {name}"));
            }
        }
    }
    for (name, member) in members.into_iter().flatten() {
        complete_defaults(&format!("{at}.{name}"), member, faults);
    }
    if let Some(items) = schema.get("items") {
        complete_defaults(&format!("{at}[]"), items, faults);
    }
}

#[test]
fn defaults_are_complete_where_rules_look_at_them() {
    for kind in Kind::ALL {
        let mut faults = Vec::new();
        complete_defaults("spec", spec_schema(kind), &mut faults);
        assert!(faults.is_empty(), "{kind:?}:\n{}", faults.join("\n"));
    }
}

/// Parentheses, brackets and quotes of an expression are closed; a typing error is caught without an evaluator.
fn balanced(cel: &str) -> bool {
    let mut open = Vec::new();
    let mut quoted = false;
    for c in cel.chars() {
        match c {
            '\'' => quoted = !quoted,
            '(' | '[' if !quoted => open.push(c),
            ')' if !quoted && open.pop() != Some('(') => return false,
            ']' if !quoted && open.pop() != Some('[') => return false,
            _ => {}
        }
    }
    open.is_empty() && !quoted
}

/// Names of all fields, and all rules with their messages.
fn walk(value: &Value, fields: &mut BTreeSet<String>, rules: &mut BTreeSet<(String, String)>) {
    if let Some(members) = value.get("properties").and_then(Value::as_object) {
        fields.extend(members.keys().cloned());
    }
    for rule in value.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        rules.insert((rule["rule"].as_str().unwrap().into(), rule["message"].as_str().unwrap().into()));
    }
    match value {
        Value::Object(map) => map.values().for_each(|child| walk(child, fields, rules)),
        Value::Array(list) => list.iter().for_each(|child| walk(child, fields, rules)),
        _ => {}
    }
}

#[test]
fn rules_are_attached_once_written_and_speak_of_known_fields() {
    let mut fields = BTreeSet::new();
    let mut rules = BTreeSet::new();
    for kind in Kind::ALL {
        walk(crd(kind), &mut fields, &mut rules);
    }
    assert!(rules.len() > 35, "only {} rules are attached", rules.len());
    fields.extend(["metadata", "name", "import"].map(str::to_owned));
    let member = regex::Regex::new(r"(?:self|oldSelf|[abn])((?:\.[a-zA-Z_]+)+)\b").unwrap();
    for (cel, message) in &rules {
        assert!(balanced(cel), "{cel}");
        assert!(message.len() > 20 && !message.contains('\n'), "{message}");
        for found in member.captures_iter(cel) {
            for name in found[1].split('.').skip(1) {
                let name = name.trim_matches('_');
                let known = fields.contains(name) || ["all", "exists", "size", "split", "filter"].contains(&name);
                assert!(known, "`{name}` in {cel}");
            }
        }
    }
    let without = Kind::ALL.map(|kind| crd_without_cel(kind).to_string());
    assert!(without.iter().all(|crd| !crd.contains("x-kubernetes-validations")));
}

#[test]
fn the_catalogue_is_consistent() {
    let camel = regex::Regex::new("^([A-Z][a-z]*)+$").unwrap();
    let mut seen = BTreeSet::new();
    for reason in REASONS {
        assert!(camel.is_match(reason.name) && camel.is_match(reason.condition), "{reason:?}");
        assert!(["True", "False", "Unknown"].contains(&reason.status), "{reason:?}");
        assert!(seen.insert((reason.kind, reason.condition, reason.name)), "twice: {reason:?}");
        assert!(reason.meaning.ends_with('.') && reason.action.ends_with('.'), "{reason:?}");
        // the conditions' names stand in the schema's text of each kind
        let status = &crd(reason.kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        let text = status["properties"]["conditions"]["description"].as_str().unwrap();
        assert!(text.contains(&format!("`{}`", reason.condition)), "{text} lacks {}", reason.condition);
    }
}
