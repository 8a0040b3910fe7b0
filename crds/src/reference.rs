//! The API reference as Markdown: every field of every kind, from the schema the API server has.
//!
//! An object that stands in several places (a provider, a Secret's key) is described where it comes first; the
//! other places link to it.

use crate::unsupported::{CLUSTER_ONLY, Field, UNSUPPORTED};
use crate::{API_VERSION, Kind, crd, schema::root_schema};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

/// A part of the page: one object of a kind's schema.
struct Section<'a> {
    kind: Kind,
    path: String,
    schema: &'a Value,
}

impl Section<'_> {
    fn title(&self) -> String {
        format!("{} {}", self.kind.name(), self.path)
    }
}

/// Where an object is described: by what it is, not by where it stands.
type Known = BTreeMap<String, String>;

/// The page of all kinds.
pub fn api_markdown() -> String {
    let mut page = format!(
        "# API reference: `{API_VERSION}`\n\nMade from the types in `crds/src` by `s3-operator explain-api --output docs/api.md`; do \
         not edit. `kubectl explain` says the same. Rules are CEL: checked by the API server (1.25 and later), by the operator \
         and by `s3 plan`.\n"
    );
    let mut known = Known::new();
    for kind in Kind::ALL {
        let root = root_schema(kind);
        // writing to a String cannot fail
        let _ = writeln!(page, "\n## {}\n\n{}", kind.name(), text(root));
        columns(&mut page, kind);
        let mut queue: VecDeque<Section> = ["spec", "status"]
            .map(|part| Section { kind, path: part.to_owned(), schema: &root["properties"][part] })
            .into();
        while let Some(section) = queue.pop_front() {
            // depth first: a field's object follows its table
            for below in describe(&mut page, &section, &mut known).into_iter().rev() {
                queue.push_front(below);
            }
        }
        listed(
            &mut page,
            kind,
            "Refused for now",
            "These are in the schema and no code honours them yet: setting one is an error, \
            never ignored.",
            UNSUPPORTED,
        );
        listed(
            &mut page,
            kind,
            "Only in a cluster",
            "`s3 run` accepts these, says that they do not apply, and why.",
            CLUSTER_ONLY,
        );
    }
    page
}

/// What `kubectl get` shows.
fn columns(page: &mut String, kind: Kind) {
    let columns = crd(kind)["spec"]["versions"][0]["additionalPrinterColumns"].as_array();
    let names: Vec<String> = columns
        .into_iter()
        .flatten()
        .filter_map(|column| {
            let wide = column["priority"].as_u64().unwrap_or(0) > 0;
            Some(format!("{}{}", column["name"].as_str()?, if wide { " (wide)" } else { "" }))
        })
        .collect();
    let _ = writeln!(page, "\n`kubectl get` shows: {}.", names.join(", "));
}

/// Writes one object's table; the objects below it that are not described yet.
fn describe<'a>(page: &mut String, section: &Section<'a>, known: &mut Known) -> Vec<Section<'a>> {
    let _ = writeln!(page, "\n### {}\n\n{}\n", section.title(), text(section.schema));
    let mut below = Vec::new();
    if let Some(members) = section.schema["properties"].as_object() {
        page.push_str("| field | type | default | what |\n|---|---|---|---|\n");
        let required = section.schema["required"].as_array();
        for (name, member) in members {
            let is_required = required.is_some_and(|names| names.iter().any(|one| one == name));
            let default = match (is_required, member.get("default")) {
                (true, _) => "**required**".to_owned(),
                (_, Some(Value::Object(_))) => "as its fields".to_owned(),
                (_, Some(value)) => format!("`{value}`"),
                (_, None) => String::new(),
            };
            let kind_of = type_of(section, name, member, known, &mut below);
            let _ = writeln!(page, "| `{name}` | {kind_of} | {} | {} |", cell(&default), cell(&text(member)));
        }
    }
    let rules = section.schema["x-kubernetes-validations"].as_array();
    for (place, rule) in rules.into_iter().flatten().enumerate() {
        page.push_str(if place == 0 { "\nRules:\n\n" } else { "" });
        let _ =
            writeln!(page, "- {}: `{}`", rule["message"].as_str().unwrap_or(""), rule["rule"].as_str().unwrap_or(""));
    }
    below
}

/// A member's type with its bounds; an object links to its own section.
fn type_of<'a>(
    section: &Section<'a>,
    name: &str,
    schema: &'a Value,
    known: &mut Known,
    below: &mut Vec<Section<'a>>,
) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "integer or text".to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> =
            values.iter().map(|value| format!("`{}`", value.as_str().unwrap_or_default())).collect();
        return values.join(", ");
    }
    match schema["type"].as_str().unwrap_or("") {
        "array" => {
            let items = type_of(section, &format!("{name}[]"), &schema["items"], known, below);
            format!("list of {items}{}", bounds(schema, "minItems", "maxItems", ""))
        }
        "object" if schema["properties"].is_object() => {
            let path = format!("{}.{name}", section.path);
            let found = known.entry(shape(schema)).or_insert_with(|| {
                let new = Section { kind: section.kind, path: path.clone(), schema };
                let title = new.title();
                below.push(new);
                title
            });
            format!("[object](#{})", anchor(found))
        }
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(section, &format!("{name}[]"), &schema["additionalProperties"], known, below))
        }
        "object" => "object".to_owned(),
        "string" if schema["format"] == "date-time" => "time".to_owned(),
        "string" => format!("text{}", bounds(schema, "minLength", "maxLength", " long")),
        other => format!("{other}{}", bounds(schema, "minimum", "maximum", "")),
    }
}

/// `, 1 to 64`; bounds that only say what fits into the number are left out.
fn bounds(schema: &Value, least: &str, most: &str, what: &str) -> String {
    let widest = [u64::from(u32::MAX), u64::MAX];
    let most = schema.get(most).filter(|value| !value.as_u64().is_some_and(|value| widest.contains(&value)));
    match (schema.get(least), most) {
        (Some(least), Some(most)) => format!(", {least} to {most}{what}"),
        (Some(least), None) => format!(", at least {least}{what}"),
        (None, Some(most)) => format!(", at most {most}{what}"),
        (None, None) => String::new(),
    }
}

/// What an object is, apart from what is said of it at one place.
fn shape(schema: &Value) -> String {
    let keys = ["properties", "required", "x-kubernetes-validations"];
    let kept: Map<String, Value> =
        keys.iter().filter_map(|key| Some(((*key).to_owned(), schema.get(*key)?.clone()))).collect();
    Value::Object(kept).to_string()
}

fn listed(page: &mut String, kind: Kind, title: &str, intro: &str, fields: &[Field]) {
    let _ = writeln!(page, "\n### {title} ({})\n\n{intro}\n\n| field | why |\n|---|---|", kind.name());
    for field in fields.iter().filter(|field| field.kind.is_none_or(|of| of == kind)) {
        let values: Vec<String> = field.values.iter().map(|value| format!("`{value}`")).collect();
        let values = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
        let _ = writeln!(page, "| `{}`{values} | {} |", field.path, cell(field.why));
    }
}

fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or("").to_owned()
}

/// A text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("\n\n", "<br>").replace('\n', " ")
}

/// The anchor that GitHub gives a heading.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}
