//! One record to a passage, whatever its fields are called.

use super::Entry;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a record should look like, for messages.
const FORM: &str = "expected {\"id\",\"title\",\"text\"} or {\"id\",\"contents\"}, all strings";
/// Fields that hold an id, a title or a text: ours and the reference's, BEIR's, `MedRAG`'s, DPR's.
const IDS: [&str; 4] = ["id", "_id", "docid", "doc_id"];
const TEXTS: [&str; 3] = ["text", "content", "passage"];
/// Longest value of a field of metadata; longer ones are texts, not something to filter by.
const LONGEST: usize = 256;

/// Title and text of the reference's `contents`: a first line in quotes is the title.
fn split_contents(contents: &str) -> (String, String) {
    let (first, rest) = contents.split_once('\n').unwrap_or(("", contents));
    let title = first.strip_prefix('"').and_then(|title| title.strip_suffix('"')).unwrap_or(first);
    (title.to_owned(), rest.to_owned())
}

/// A record's text as a JSON object.
pub fn parse(text: &str) -> Result<Entry, String> {
    entry(serde_json::from_str(text).map_err(|error| format!("{error}; {FORM}"))?)
}

/// A JSON object.
pub fn entry(mut fields: Map<String, Value>) -> Result<Entry, String> {
    let id = match IDS.iter().find_map(|name| fields.remove(*name)) {
        None => String::new(),
        Some(Value::String(id)) if id.is_empty() => return Err("the id is empty".to_owned()),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
        Some(other) => return Err(format!("invalid type of the id: {other}; {FORM}")),
    };
    let mut string = |name: &str| match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("invalid type of {name}; {FORM}")),
    };
    let title = string("title")?;
    let contents = string("contents")?;
    let mut text = None;
    for name in TEXTS {
        // both forms together are what the reference's servers hand out; title and text are the plainer
        text = text.or(string(name)?);
    }
    let (title, text) = match (title, text, contents) {
        (title, Some(text), _) => (title.unwrap_or_default(), text),
        (_, None, Some(contents)) => split_contents(&contents),
        (_, None, None) => return Err(format!("neither text nor contents; {FORM}")),
    };
    let mut metadata = BTreeMap::new();
    if let Some(Value::Object(given)) = fields.remove("metadata") {
        given.into_iter().for_each(|(name, value)| keep(&mut metadata, name, value));
    }
    fields.into_iter().for_each(|(name, value)| keep(&mut metadata, name, value));
    Ok(Entry { id, title, text, metadata })
}

/// Keeps what can be filtered by: names with one short value.
fn keep(metadata: &mut BTreeMap<String, String>, name: String, value: Value) {
    let value = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return,
    };
    if !name.is_empty() && value.len() <= LONGEST {
        metadata.insert(name, value);
    }
}

/// Columns of a tab-separated line, named by the header; DPR quotes texts that hold quotes.
pub fn columns(names: &[String], line: &str) -> Result<Entry, String> {
    let values: Vec<&str> = line.split('\t').collect();
    if values.len() != names.len() {
        return Err(format!("{} columns, the header has {}", values.len(), names.len()));
    }
    let unquoted = |value: &str| match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => value.to_owned(),
    };
    entry(names.iter().cloned().zip(values.into_iter().map(|value| Value::String(unquoted(value)))).collect())
}
